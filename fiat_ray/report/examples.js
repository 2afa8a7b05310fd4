// The example browser: one row at a time, so that it stays quick with any number of rows. Texts are set as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("example-data").textContent);
  const names = JSON.parse(document.getElementById("language-names").textContent);
  const [form, language, who, position, article] = ["filter", "language", "who", "position", "example"].map((id) => document.getElementById(id));
  if (!data.rows.length) {
    article.textContent = "No test rows in this run yet.";
    return;
  }
  let shown = data.rows;
  let index = 0;

  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    element.textContent = text;
    Object.entries(attributes).forEach(([name, value]) => value && element.setAttribute(name, value));
    return element;
  };
  const written = (tag, number, empty) => {
    const [text, dir, lang] = data.texts[number];
    return make(tag, text || empty, text ? { dir, lang } : { class: "note" });
  };
  const option = (value, text) => new Option(text, value);

  const answers = (example) => {
    const table = make("table", "");
    const head = table.createTHead().insertRow();
    ["Method", "Answer", "Score"].forEach((text) => head.append(make("th", text, { scope: "col" })));
    const body = table.createTBody();
    example.answers.forEach(([method, text, right, score]) => {
      const row = body.insertRow();
      const verdict = make("td", [right ? "✓ right" : "✗ wrong", score].filter(Boolean).join(" · "), { class: right ? "right" : "wrong" });
      row.append(make("th", data.methods[method], { scope: "row" }), written("td", text, "(no answer)"), verdict);
    });
    return table;
  };

  const show = () => {
    const example = shown[index];
    position.textContent = example ? `${index + 1} of ${shown.length}` : "none";
    article.replaceChildren();
    if (!example) return;
    const add = (title, ...elements) => article.append(make("h3", title), ...elements);
    add(`${example.task} · ${names[example.language] || example.language} (${example.language})`);
    example.input.forEach(([label, text]) => add(label || "input", written("p", text, "(empty)")));
    add(`rationale${example.status && example.status !== "ok" ? ` (${example.status})` : ""}`, written("p", example.rationale, "(none)"));
    add("gold answer", ...example.gold.map((text) => written("p", text, "(empty)")));
    add("answers", answers(example));
  };

  const verdicts = (example) => {
    const found = [];
    example.answers.forEach(([method, , right]) => (found[method] = right ? "right" : "wrong"));
    return found;
  };

  // Beside each choice stands how many rows it would show, all other choices being as they are.
  const filter = () => {
    const counts = choices.map(() => ({ right: 0, wrong: 0 }));
    shown = data.rows.filter((example) => {
      if (language.value && example.language !== language.value) return false;
      const found = verdicts(example);
      const against = choices.flatMap(({ value }, method) => (value && value !== found[method] ? [method] : []));
      const counted = against.length ? against : data.methods.keys();
      if (against.length < 2) for (const method of counted) if (found[method]) counts[method][found[method]]++;
      return !against.length;
    });
    choices.forEach((choice, method) => [...choice.options].slice(1).forEach((one) => (one.text = `${one.value} (${counts[method][one.value]})`)));
    index = 0;
    show();
  };

  const move = (by) => {
    if (shown.length) index = (index + by + shown.length) % shown.length;
    show();
  };

  [...new Set(data.rows.map((example) => example.language))].sort().forEach((code) => {
    const name = names[code] || code;
    language.append(option(code, name === code ? code : `${name} (${code})`));
  });
  const choices = data.methods.map((method) => {
    const choice = make("select", "");
    choice.append(option("", "any"), option("right", "right"), option("wrong", "wrong"));
    const label = make("label", method);
    label.append(choice);
    who.append(label);
    return choice;
  });
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", filter);
  form.addEventListener("reset", () => setTimeout(filter)); // the choices are as they were until the event is over
  document.getElementById("previous").addEventListener("click", () => move(-1));
  document.getElementById("next").addEventListener("click", () => move(1));
  document.getElementById("examples").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && event.target.tagName !== "SELECT") move(by);
  });
  filter();
})();
