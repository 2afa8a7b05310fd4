"""Questions about countries in 13 languages, made from Unicode CLDR data (Unicode License v3) as Babel ships it.

Like the rows of cross-lingual QA: a question in its own language, an English title and passage, an English answer that stands in the passage,
or ``No Answer``. One fact, asked in several languages, always comes with the same passage. No country stands in two splits.
"""

from __future__ import annotations

import datetime
import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babel import Locale
from babel.core import get_global
from babel.languages import get_official_languages
from babel.numbers import get_currency_name, get_territory_currencies

from fiat_ray.rows import Place

ROWS = {"train": 60, "validation": 30, "test": 60}
"""Rows a language; ``limit`` draws fewer."""
SHARES = {"train": 0.4, "validation": 0.2, "test": 0.4}
"""Of the countries."""
ONE_IN = 5
"""Facts of which one has no answer."""
AS_OF = datetime.date(2025, 1, 1)
"""Currencies change: those of this day, whatever the day of the run."""

# The United Nations' geoscheme (M49), which Babel's part of CLDR lacks. Countries whose English name takes an article or has an alternative in
# brackets are left out, and so are those whose currency changed after AS_OF.
REGIONS = {
    "005": "AR BO BR CL CO EC GY PY PE SR UY VE",
    "011": "BJ BF CV CI GH GN GW LR ML MR NE NG SN SL TG",
    "013": "BZ CR SV GT HN MX NI PA",
    "014": "BI DJ ER ET KE MG MW MU MZ RW SC SO SS TZ UG ZM ZW",
    "015": "DZ EG LY MA SD TN",
    "017": "AO CM TD GQ GA ST",
    "018": "BW SZ LS NA ZA",
    "029": "AG BB CU DM GD HT JM KN LC VC TT",
    "030": "CN JP MN KP KR",
    "034": "AF BD BT IN IR NP PK LK",
    "035": "BN KH ID LA MY SG TH TL VN",
    "039": "AL AD BA HR GR IT MT ME MK PT SM RS SI ES",
    "053": "AU NZ",
    "054": "FJ PG VU",
    "061": "WS TO TV",
    "143": "KZ KG TJ TM UZ",
    "145": "AM AZ BH CY GE IQ IL JO KW LB OM QA SA SY TR YE",
    "151": "BY CZ HU PL MD RO RU SK UA",
    "154": "DK EE FI IS IE LV LT NO SE",
    "155": "AT BE FR DE LI LU MC CH",
}
EXEMPLARS = frozenset({"BR", "IS", "KE", "JO"})
"""Countries of ``exemplars.jsonl``: no row is about them."""
SEVERAL_LANGUAGES = frozenset({"BF", "ET", "IQ", "ME", "MK", "ML", "NE", "NZ", "ZA"})
"""Countries of which CLDR lists one official language, though they have others too, or have changed it."""

QUESTIONS = {
    "am": {
        "currency": "{country}፦ የአገሪቱ መገበያያ ገንዘብ ምንድን ነው?",
        "language": "{country}፦ የአገሪቱ ኦፊሴላዊ ቋንቋ ምንድን ነው?",
        "region": "{country}፦ አገሪቱ የምትገኘው በየትኛው የዓለም ክፍል ነው?",
        "name": "{country}፦ የአገሪቱ ስም በኦፊሴላዊ ቋንቋዋ ምንድን ነው?",
    },
    "ar": {
        "currency": "{country}: ما عملة هذا البلد؟",
        "language": "{country}: ما اللغة الرسمية لهذا البلد؟",
        "region": "{country}: في أي منطقة من العالم يقع هذا البلد؟",
        "name": "{country}: ما اسم هذا البلد بلغته الرسمية؟",
    },
    "bn": {
        "currency": "{country}: দেশটির মুদ্রার নাম কী?",
        "language": "{country}: দেশটির সরকারি ভাষা কোনটি?",
        "region": "{country}: দেশটি বিশ্বের কোন অঞ্চলে অবস্থিত?",
        "name": "{country}: নিজের সরকারি ভাষায় দেশটির নাম কী?",
    },
    "el": {
        "currency": "{country}: ποιο είναι το νόμισμα αυτής της χώρας;",
        "language": "{country}: ποια είναι η επίσημη γλώσσα αυτής της χώρας;",
        "region": "{country}: σε ποια περιοχή του κόσμου βρίσκεται αυτή η χώρα;",
        "name": "{country}: πώς ονομάζεται αυτή η χώρα στην επίσημη γλώσσα της;",
    },
    "hi": {
        "currency": "{country}: इस देश की मुद्रा क्या है?",
        "language": "{country}: इस देश की आधिकारिक भाषा कौन-सी है?",
        "region": "{country}: यह देश दुनिया के किस क्षेत्र में स्थित है?",
        "name": "{country}: इस देश को इसकी आधिकारिक भाषा में क्या कहा जाता है?",
    },
    "id": {
        "currency": "Apa mata uang {country}?",
        "language": "Apa bahasa resmi {country}?",
        "region": "Di kawasan dunia manakah {country} terletak?",
        "name": "Apa nama {country} dalam bahasa resminya?",
    },
    "ja": {
        "currency": "{country}の通貨は何ですか？",
        "language": "{country}の公用語は何語ですか？",
        "region": "{country}は世界のどの地域にありますか？",
        "name": "{country}は自国の公用語で何と呼ばれますか？",
    },
    "ko": {
        "currency": "{country}의 통화는 무엇입니까?",
        "language": "{country}의 공용어는 무엇입니까?",
        "region": "{country}: 이 나라는 세계의 어느 지역에 있습니까?",
        "name": "{country}: 이 나라는 자국의 공용어로 무엇이라고 불립니까?",
    },
    "ru": {
        "currency": "{country}: какая валюта используется в этой стране?",
        "language": "{country}: какой язык является официальным в этой стране?",
        "region": "{country}: в каком регионе мира находится эта страна?",
        "name": "{country}: как называется эта страна на её официальном языке?",
    },
    "sw": {
        "currency": "{country}: nchi hii inatumia sarafu gani?",
        "language": "{country}: lugha rasmi ya nchi hii ni ipi?",
        "region": "{country}: nchi hii iko katika eneo gani la dunia?",
        "name": "{country}: nchi hii inaitwaje kwa lugha yake rasmi?",
    },
    "ta": {
        "currency": "{country}: இந்த நாட்டின் நாணயம் எது?",
        "language": "{country}: இந்த நாட்டின் அதிகாரப்பூர்வ மொழி எது?",
        "region": "{country}: இந்த நாடு உலகின் எந்தப் பகுதியில் உள்ளது?",
        "name": "{country}: இந்த நாடு அதன் அதிகாரப்பூர்வ மொழியில் எவ்வாறு அழைக்கப்படுகிறது?",
    },
    "te": {
        "currency": "{country}: ఈ దేశ కరెన్సీ ఏమిటి?",
        "language": "{country}: ఈ దేశ అధికార భాష ఏది?",
        "region": "{country}: ఈ దేశం ప్రపంచంలోని ఏ ప్రాంతంలో ఉంది?",
        "name": "{country}: ఈ దేశాన్ని దాని అధికార భాషలో ఏమని పిలుస్తారు?",
    },
    "th": {
        "currency": "สกุลเงินของประเทศ{country}คืออะไร",
        "language": "ภาษาทางการของประเทศ{country}คือภาษาอะไร",
        "region": "ประเทศ{country}อยู่ในภูมิภาคใดของโลก",
        "name": "ประเทศ{country}มีชื่อในภาษาทางการของตนว่าอะไร",
    },
}
"""The country's name stands alone or uninflected, because CLDR gives only its basic form."""

SENTENCES = {
    "currency": (
        "{subject} uses the {value} as its currency in shops, banks and markets.",
        "{subject} pays its workers in the {value}, which is the official currency.",
        "{subject} issues its budget in the national currency, the {value}.",
    ),
    "language": (
        "{subject} has {value} as its official language, used in laws and public offices.",
        "{subject} publishes its laws in {value}, which is the official language.",
        "{subject} runs its public offices in the official language, {value}.",
    ),
    "region": (
        "{subject} lies in {value}, according to the regions of the United Nations.",
        "{subject} is counted by the United Nations among the countries of {value}.",
        "{subject} belongs to the part of the world that is called {value}.",
    ),
    "name": (
        "{subject} is called {value} in its own official language.",
        "{subject} bears the name {value} in the official language of its people.",
        "{subject} is known as {value} to those who speak its official language.",
    ),
    "domain": (
        "{subject} has websites whose addresses end in {value} on the internet.",
        "{subject} owns the internet domain {value}, which local companies often use.",
    ),
    "code": (
        "{subject} is written as {value} in international lists of country codes.",
        "{subject} has the two-letter code {value} in lists of countries.",
    ),
    "zone": (
        "{subject} stands in the list of time zones with the entry {value}.",
        "{subject} has clocks that are set by the time zone {value}.",
    ),
}
"""What a passage may say of a country. The first four can be asked."""


@dataclass(frozen=True)
class Fact:
    country: str
    relation: str
    title: str
    context: str
    target: str


def rows(data: Path | None = None, *, seed: int = 0) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    """(place, split, row) with the fields ``question, title, context, target, language, fact``. Nothing is read: ``data`` is not used."""
    known = {code: _known(code, region) for region, codes in REGIONS.items() for code in codes.split() if code not in EXEMPLARS}
    names = {language: Locale.parse(language).territories for language in QUESTIONS}
    for split, countries in _countries(sorted(known), seed).items():
        facts = _facts({code: known[code] for code in countries}, random.Random(f"{seed} {split}"))
        for language, questions in QUESTIONS.items():
            for number, fact in enumerate(_drawn(facts, ROWS[split], random.Random(f"{seed} {split} {language}")), 1):
                yield (
                    Place(f"country_facts {split} {language}, row {number}"),
                    split,
                    {
                        "question": questions[fact.relation].format(country=names[language][fact.country]),
                        "title": fact.title,
                        "context": fact.context,
                        "target": fact.target,
                        "language": language,
                        "fact": [fact.country, fact.relation],
                    },
                )


def _countries(codes: list[str], seed: int) -> dict[str, list[str]]:
    """Split → its countries, which stand in no other split."""
    random.Random(f"{seed} countries").shuffle(codes)
    start, countries = 0.0, {}
    for split, share in SHARES.items():
        end = start + share * len(codes)
        countries[split] = codes[round(start) : round(end)]
        start = end
    return countries


def _known(code: str, region: str) -> dict[str, str]:
    """Relation → what CLDR says of a country, where it says one thing only."""
    english = Locale.parse("en")
    name = english.territories[region]
    values = {"region": f"the {name}" if region == "029" else name, "domain": f".{code.lower()}", "code": code}
    values["zone"] = min(get_global("territory_zones")[code])
    currencies = get_territory_currencies(code, start_date=AS_OF)
    if len(currencies) == 1:
        values["currency"] = get_currency_name(currencies[0], count=1, locale="en")
    languages = get_official_languages(code)
    if len(languages) == 1 and code not in SEVERAL_LANGUAGES:
        spoken = Locale.parse(languages[0])
        values["language"] = english.languages[spoken.language]
        endonym = spoken.territories.get(code, "")
        # An English reader, and English F1, can do with Latin letters only.
        if endonym != english.territories[code] and unicodedata.name(endonym[:1], "").startswith("LATIN"):
            values["name"] = endonym
    return values


def _facts(known: dict[str, dict[str, str]], chance: random.Random) -> list[Fact]:
    """All facts of a split's countries. One in ``ONE_IN`` has no answer: its passage leaves the fact out, or is about another country, by turns."""
    titles = {code: Locale.parse("en").territories[code] for code in known}
    asked = [(code, relation) for code in known for relation in QUESTIONS["id"] if relation in known[code]]
    chance.shuffle(asked)
    facts = []
    for number, (code, relation) in enumerate(asked):
        answer = known[code][relation].removeprefix("the ")
        subject, told, hidden = code, relation, ""
        if number % ONE_IN == 0:
            told, hidden = "", answer
            silent = {c: _without(known[c], answer) for c in known if not _holds(titles[c], answer)}
            # Of Thailand, nothing can be said without "Thai".
            if number % (2 * ONE_IN) == 0 or len(silent.get(code, ())) < 3:
                subject, told = chance.choice([c for c in silent if c != code and relation in silent[c] and len(silent[c]) >= 3]), relation
        context = _passage(titles[subject], known[subject], told, hidden, chance)
        facts.append(Fact(code, relation, titles[subject], context, "No Answer" if hidden else answer))
    return facts


def _passage(country: str, known: dict[str, str], relation: str, hidden: str, chance: random.Random) -> str:
    """Three sentences about a country: one tells ``relation`` (if any is given), none holds the ``hidden`` text."""
    others = sorted(_without(known, hidden) - {relation})
    relations = [relation, *chance.sample(others, 2)] if relation else chance.sample(others, 3)
    chance.shuffle(relations)
    sentences = []
    for number, told in enumerate(relations):
        subject = chance.choice(("The country", "It", country)) if number else country
        sentences.append(chance.choice(SENTENCES[told]).format(subject=subject, value=known[told]))
    return " ".join(sentences)


def _without(known: dict[str, str], hidden: str) -> set[str]:
    """Relations whose value does not give ``hidden`` away."""
    return {relation for relation, value in known.items() if not (hidden and _holds(value, hidden))}


def _holds(text: str, part: str) -> bool:
    return part.casefold() in text.casefold()


def _drawn(facts: list[Fact], count: int, chance: random.Random) -> list[Fact]:
    """A language's share of the facts, those without an answer in the same proportion."""
    without = [fact for fact in facts if fact.target == "No Answer"]
    answered = [fact for fact in facts if fact.target != "No Answer"]
    drawn = chance.sample(without, count // ONE_IN) + chance.sample(answered, count - count // ONE_IN)
    chance.shuffle(drawn)
    return drawn
