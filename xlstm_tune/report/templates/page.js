(function () {
  "use strict";

  // Figures name the page's colours; plotly wants values, and other ones in the dark.
  function resolved(value, style) {
    if (typeof value === "string") {
      return value.startsWith("var(--") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
    }
    if (Array.isArray(value)) {
      return typeof value[0] === "number" ? value : value.map(function (one) { return resolved(one, style); });
    }
    if (value && typeof value === "object") {
      const made = {};
      for (const key of Object.keys(value)) made[key] = resolved(value[key], style);
      return made;
    }
    return value;
  }

  const figures = new Map();
  for (const script of document.querySelectorAll("script.figure-data")) {
    figures.set(script.dataset.for, JSON.parse(script.textContent));
  }
  const drawn = new Set();
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    scrollZoom: false,
  };

  function draw(id) {
    const style = getComputedStyle(document.documentElement);
    const figure = resolved(figures.get(id), style);
    const narrow = matchMedia("(max-width: 40rem)").matches;
    figure.layout.font.family = style.getPropertyValue("--sans").trim();
    figure.layout.dragmode = narrow ? false : "zoom";
    drawn.add(id);
    Plotly.react(document.getElementById(id), figure.data, figure.layout, Object.assign({ displayModeBar: narrow ? false : "hover" }, config));
  }

  if (figures.size) {
    const watch = new IntersectionObserver(function (entries) {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          watch.unobserve(entry.target);
          draw(entry.target.id);
        }
      }
    }, { rootMargin: "600px 0px" });
    for (const id of figures.keys()) watch.observe(document.getElementById(id));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () {
      for (const id of drawn) draw(id);
    });
    addEventListener("beforeprint", function () {
      for (const id of figures.keys()) if (!drawn.has(id)) draw(id);
    });
  }

  // Tables: numbers by value, text by alphabet; what has no value stays last.
  function key(row, index) {
    const cell = row.cells[index];
    const given = cell.dataset.sort;
    if (given === undefined) return cell.textContent.trim().toLowerCase();
    const number = given === "inf" ? Infinity : Number(given);
    return Number.isNaN(number) ? given.toLowerCase() : number;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, index) {
      head.querySelector("button").addEventListener("click", function () {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = Array.from(table.tBodies[0].rows).map(function (row) { return [key(row, index), row]; });
        rows.sort(function (a, b) {
          const last = (a[0] === Infinity || a[0] === "") - (b[0] === Infinity || b[0] === "");
          if (last || a[0] === b[0]) return last;
          return (a[0] < b[0] ? -1 : 1) * (up ? 1 : -1);
        });
        table.tBodies[0].append.apply(table.tBodies[0], rows.map(function (pair) { return pair[1]; }));
      });
    });
  }

  // The contents say which section is on the screen.
  const links = new Map(Array.from(document.querySelectorAll(".contents a")).map(function (link) {
    return [link.getAttribute("href").slice(1), link];
  }));
  const spy = new IntersectionObserver(function (entries) {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id).setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  for (const id of links.keys()) spy.observe(document.getElementById(id));
})();
