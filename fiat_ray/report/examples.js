// The example browser: one row at a time, so that it stays quick with any number of rows. Texts are set as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("example-data").textContent);
  const names = JSON.parse(document.getElementById("language-names").textContent);
  const [form, language, who, position, article] = ["filter", "language", "who", "position", "example"].map((id) => document.getElementById(id));
  if (!data.length) {
    article.textContent = "No test rows in this run yet.";
    return;
  }
  let shown = data;
  let index = 0;

  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    element.textContent = text;
    Object.entries(attributes).forEach(([name, value]) => value && element.setAttribute(name, value));
    return element;
  };
  const written = (tag, part, empty) => make(tag, part.text || empty, part.text ? { dir: part.dir, lang: part.lang } : { class: "note" });
  const option = (value, text) => make("option", text, { value });

  const answers = (example) => {
    const table = make("table", "");
    const head = table.createTHead().insertRow();
    ["Method", "Answer", "Score"].forEach((text) => head.append(make("th", text, { scope: "col" })));
    const body = table.createTBody();
    example.answers.forEach((answer) => {
      const row = body.insertRow();
      const verdict = make("td", [answer.right ? "✓ right" : "✗ wrong", answer.score].filter(Boolean).join(" · "), { class: answer.right ? "right" : "wrong" });
      row.append(make("th", answer.method, { scope: "row" }), written("td", answer, "(no answer)"), verdict);
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
    example.input.forEach((part) => add(part.label || "input", written("p", part, "(empty)")));
    add(`rationale${example.status && example.status !== "ok" ? ` (${example.status})` : ""}`, written("p", example.rationale, "(none)"));
    add("gold answer", ...example.gold.map((part) => written("p", part, "(empty)")));
    add("answers", answers(example));
  };

  const filter = () => {
    const [method, right] = who.value ? JSON.parse(who.value) : [];
    const wanted = (example) => example.answers.some((answer) => answer.method === method && answer.right === right);
    shown = data.filter((example) => (!language.value || example.language === language.value) && (!method || wanted(example)));
    index = 0;
    show();
  };

  const move = (by) => {
    if (shown.length) index = (index + by + shown.length) % shown.length;
    show();
  };

  [...new Set(data.map((example) => example.language))].sort().forEach((code) => {
    const name = names[code] || code;
    language.append(option(code, name === code ? code : `${name} (${code})`));
  });
  [...new Set(data.flatMap((example) => example.answers.map((answer) => answer.method)))].forEach((method) => {
    who.append(option(JSON.stringify([method, true]), `${method}: right`), option(JSON.stringify([method, false]), `${method}: wrong`));
  });
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  language.addEventListener("change", filter);
  who.addEventListener("change", filter);
  document.getElementById("previous").addEventListener("click", () => move(-1));
  document.getElementById("next").addEventListener("click", () => move(1));
  document.getElementById("examples").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && event.target.tagName !== "SELECT") move(by);
  });
  show();
})();
