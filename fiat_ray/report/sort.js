// Tables sort by a column: up, down, and back to the order they came in, which tells what each row is compared with.
(() => {
  const MISSING = new Set(["", "–", "not run"]);
  const collator = new Intl.Collator("en", { numeric: true });

  const words = (row, column) => [...row.cells[column].childNodes].filter((node) => node.nodeName !== "SMALL").map((node) => node.textContent).join("").trim();
  const number = (text) => (/^[+−-]?[\d.,]+/.test(text) ? Number.parseFloat(text.replace("−", "-").replaceAll(",", "")) : Number.NaN);

  // What is missing comes last either way.
  const compare = (a, b, down) => {
    if (MISSING.has(a) || MISSING.has(b)) return MISSING.has(a) - MISSING.has(b);
    const [x, y] = [number(a), number(b)];
    const order = Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y;
    return down ? -order : order;
  };

  document.querySelectorAll(".table table").forEach((table) => {
    const body = table.tBodies[0];
    const given = [...body.rows];
    if (given.length < 2) return;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.textContent) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { null: "ascending", ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (next) head.setAttribute("aria-sort", next);
        const down = next === "descending";
        body.append(...(next ? [...given].sort((a, b) => compare(words(a, column), words(b, column), down)) : given));
      });
    });
  });
})();
