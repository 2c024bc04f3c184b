"use strict";
// What the page can be asked. Everything that is said here is also in the page's tables and files.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  /** An element with properties, attributes where there is no such property, and children. */
  const make = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };

  /** A name that narrow columns may break before its dots. */
  const breakable = (name) => name.split(".").flatMap((part, k) => (k === 0 ? [part] : [make("wbr"), `.${part}`]));

  // Tables: a click on a header sorts up, then down, then as before; words filter the rows of long ones.

  const LONG = 10;

  /** What a row is sorted by; undefined for a value that is missing. */
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    if (cell.classList.contains("share")) return parseFloat(cell.textContent.replace("−", "-"));
    const text = cell.textContent.trim();
    return text === "—" || text === "" ? undefined : text;
  };

  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });

  const sortable = (table) => {
    const body = table.tBodies[0];
    const before = [...body.rows];
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const button = make("button", { type: "button" }, ...header.childNodes);
      header.replaceChildren(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: null }[header.getAttribute("aria-sort")];
        const order = next === undefined ? "ascending" : next;
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        let rows = before;
        if (order !== null) {
          header.setAttribute("aria-sort", order);
          const sign = order === "ascending" ? 1 : -1;
          const keyed = before.map((row) => [keyOf(row, column), row]);
          const known = keyed.filter(([key]) => key !== undefined && !Number.isNaN(key));
          const rest = keyed.filter(([key]) => key === undefined || Number.isNaN(key));
          rows = [...known.sort(([a], [b]) => sign * compare(a, b)), ...rest].map(([, row]) => row);
        }
        body.append(...rows);
      });
    });
  };

  let numFilters = 0;
  const filterable = (table, scroll) => {
    const rows = [...table.tBodies[0].rows];
    const id = `filter-${numFilters++}`;
    const input = make("input", { type: "search", id });
    const count = make("span", { role: "status" });
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = [...row.cells].map((cell) => cell.textContent.trim().toLowerCase()).join("\n");
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    });
    scroll.before(make("p", { className: "filter" }, make("label", { htmlFor: id }, "Rows with the words"), input, count));
  };

  for (const table of document.querySelectorAll("table:not(.map)")) {
    if (table.tBodies[0].rows.length > 2) sortable(table);
    if (table.tBodies[0].rows.length >= LONG) filterable(table, table.closest(".scroll"));
  }

  // Numbers as the rest of the page writes them.

  /** Significant digits, with a power of ten beyond them. */
  const significant = (value, digits) => {
    if (value === 0) return "0";
    const [mantissa, power] = value.toExponential(digits - 1).split("e");
    const exponent = Number(power);
    const raised = [...String(exponent)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(c)])).join("");
    const text = exponent < -4 || exponent >= digits ? `${mantissa}×10${raised}` : value.toFixed(digits - 1 - exponent);
    return text.replace("-", "−");
  };
  const signed = (value) => (value > 0 ? "+" : "") + significant(value, 3);

  /** A layer over a figure that keeps its size, in which places are shares of the figure. */
  const over = (figure) => {
    const canvas = figure.querySelector(".canvas");
    const svg = canvas.querySelector("svg");
    const layer = make("div", { className: "pointed" });
    layer.style.maxWidth = svg.style.maxWidth;
    layer.style.minWidth = svg.style.minWidth;
    canvas.before(layer);
    layer.append(canvas);
    return layer;
  };
  const put = (element, left, top) => {
    element.style.left = `${100 * left}%`;
    element.style.top = `${100 * top}%`;
  };

  // Another budget.

  const budgets = data.budgets;
  if (budgets) {
    const slider = document.getElementById("budget");
    const back = document.getElementById("budget-shown");
    const answer = document.getElementById("budget-answer");
    const facts = document.getElementById("budget-facts");
    const changes = document.getElementById("budget-changes");
    const ring = make("span", { className: "mark-budget", hidden: true });
    over(document.getElementById("plot-loss_against_size")).append(ring);

    const map = document.querySelector("#bits .map, #bits .cells").cloneNode(true);
    for (const note of map.querySelectorAll("small")) note.remove();
    const label = "Bits of every group at this budget";
    if (map.caption) map.caption.textContent = label;
    else map.setAttribute("aria-label", label);
    const cells = [...map.querySelectorAll("[data-group]")];
    const place = make("div", { className: "scroll", role: "group", "aria-label": label, tabIndex: 0 }, map);
    document.getElementById("budget-map").append(map.caption ? place : map);

    const changed = (stop) => stop.formats.flatMap((f, g) => (f === budgets.shown[g] ? [] : [g]));
    const nameOf = (f) => budgets.formats[f][0];
    const direction = (g, stop) => Math.sign(budgets.bits[stop.formats[g]] - budgets.bits[budgets.shown[g]]);

    const changesTable = (stop, groups) => {
      const head = ["Group", "Weights", "This assignment", "At this budget"];
      const rows = groups.map((g) =>
        make("tr", {},
          make("th", { scope: "row" }, ...breakable(budgets.groups[g])),
          make("td", { className: "number", "data-value": budgets.weights[g].replaceAll(",", "") }, budgets.weights[g]),
          make("td", {}, nameOf(budgets.shown[g])),
          make("td", {}, `${nameOf(stop.formats[g])} ${["▼", "", "▲"][1 + direction(g, stop)]}`.trim())));
      const table = make("table", {},
        make("caption", {}, make("span", {}, "What differs from this assignment; ▲ is more bits, ▼ fewer.")),
        make("thead", {}, make("tr", {}, ...head.map((title, k) =>
          make("th", { scope: "col", className: k === 1 ? "number" : "" }, title)))),
        make("tbody", {}, ...rows));
      sortable(table);
      return make("div", { className: "scroll", role: "group", "aria-label": "What differs", tabIndex: 0 }, table);
    };

    const show = () => {
      const stop = budgets.stops[Number(slider.value)];
      const groups = changed(stop);
      slider.setAttribute("aria-valuetext", stop.title);
      back.disabled = Number(slider.value) === budgets.start;
      const predicted = stop.facts.find(([term]) => term.startsWith("Predicted"));
      const differ = groups.length === 0 ? "no group differs" :
        `${groups.length} of ${budgets.groups.length} groups ${groups.length === 1 ? "differs" : "differ"} from this assignment`;
      answer.textContent = `${stop.title}: ${predicted[0].toLowerCase().replace("kl", "KL").replace("mse", "MSE")} ${predicted[1].split(",")[0]}, ${differ}.`;
      facts.replaceChildren(...stop.facts.map(([term, value]) =>
        make("div", {}, make("dt", {}, term), make("dd", {}, value))));
      for (const cell of cells) {
        const g = Number(cell.dataset.group);
        const [name, text, bits] = budgets.formats[stop.formats[g]];
        const differs = stop.formats[g] !== budgets.shown[g];
        cell.className = `bits b${bits}${differs ? " changed" : ""}`;
        cell.textContent = differs ? `${text} ${["▼", "≠", "▲"][1 + direction(g, stop)]}` : text;
        cell.title = `${budgets.groups[g]}: ${name}${differs ? ` instead of ${nameOf(budgets.shown[g])}` : ""}`;
      }
      const open = changes.querySelector("details")?.open ?? false;
      changes.replaceChildren(...(groups.length ? [make("details", { open },
        make("summary", {}, `The ${groups.length === 1 ? "group that differs" : `${groups.length} groups that differ`}`),
        changesTable(stop, groups))] : []));
      ring.hidden = stop.mark === null;
      if (stop.mark !== null) put(ring, ...stop.mark);
    };

    slider.max = String(budgets.stops.length - 1);
    slider.value = String(budgets.start);
    slider.addEventListener("input", show);
    back.addEventListener("click", () => { slider.value = String(budgets.start); show(); slider.focus(); });
    document.getElementById("other-budgets").hidden = false;
    show();
  }

  // Pairs of groups.

  const pairs = data.pairs;
  if (pairs) {
    const numGroups = pairs.groups.length;
    const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
    const loss = bytes(pairs.loss);
    const stderr = bytes(pairs.stderr);

    /** The n-th standard error, from float16. */
    const errorOf = (n) => {
      const half = stderr.getUint16(2 * n, true);
      const exponent = (half >> 10) & 31;
      const fraction = half & 1023;
      const size = exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25);
      return size * pairs.stderr_unit;
    };
    /** Where a pair i < j stands in the upper triangle, row after row. */
    const placeOf = (i, j) => i * numGroups - (i * (i + 1)) / 2 + j - i - 1;

    const say = (i, j) => {
      const name = (g) => `${pairs.groups[g]} in ${pairs.formats[g]}`;
      if (i === j) return `${name(i)} alone: ${signed(pairs.alone[i])}, standard error ${significant(pairs.alone_stderr[i], 2)}.`;
      const n = placeOf(Math.min(i, j), Math.max(i, j));
      const value = loss.getFloat32(4 * n, true);
      const error = errorOf(n);
      const doubt = error > 0 && Math.abs(value) < 1.96 * error ? " Calibration samples differ on the sign." : "";
      return `${name(i)} and ${name(j)}: ${signed(value)} beyond the sum of ${signed(pairs.alone[i])} and ${signed(pairs.alone[j])}, ` +
        `${error > 0 ? `standard error ${significant(error, 2)}` : "error not estimated"}.${doubt}`;
    };

    const figure = document.getElementById("plot-interactions");
    const [left, top, width, height] = pairs.frame;
    const parts = ["row", "column", "cell"].map((className) => make("i", { className }));
    const pointer = make("div", {
      className: "pointer", tabIndex: 0, role: "application", "aria-roledescription": "map of pairs",
      "aria-label": "Interaction of two groups; arrow keys move over the map", "aria-describedby": "pair",
    }, ...parts);
    put(pointer, left, top);
    pointer.style.width = `${100 * width}%`;
    pointer.style.height = `${100 * height}%`;
    over(figure).append(pointer);
    const readout = make("p", { className: "readout", id: "pair", role: "status" });
    figure.after(readout);

    let [row, column] = pairs.strongest;
    const at = (newRow, newColumn) => {
      [row, column] = [newRow, newColumn].map((g) => Math.min(Math.max(g, 0), numGroups - 1));
      const size = `${100 / numGroups}%`;
      const [line, upright, cell] = parts;
      for (const part of [line, cell]) { part.style.top = `${(100 * row) / numGroups}%`; part.style.height = size; }
      for (const part of [upright, cell]) { part.style.left = `${(100 * column) / numGroups}%`; part.style.width = size; }
      line.style.width = upright.style.height = "100%";
      readout.replaceChildren(...breakable(say(row, column)));
    };
    const pointed = (event) => {
      const box = pointer.getBoundingClientRect();
      at(Math.floor((numGroups * (event.clientY - box.top)) / box.height), Math.floor((numGroups * (event.clientX - box.left)) / box.width));
    };
    pointer.addEventListener("pointermove", pointed);
    pointer.addEventListener("pointerdown", pointed);
    pointer.addEventListener("keydown", (event) => {
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const step = event.shiftKey ? 10 : 1;
      if (event.key in moves) at(row + step * moves[event.key][0], column + step * moves[event.key][1]);
      else if (event.key === "Home") at(...pairs.strongest);
      else return;
      event.preventDefault();
    });
    at(row, column);
  }
})();
