(async function () {
  "use strict";
  const element = (id) => document.getElementById(id);
  const table = element("runs"), body = table.tBodies[0];
  let chosen = null;

  function filter() {
    const wanted = element("text").value.toLowerCase();
    const group = element("group"), status = element("status").value;
    let n = 0;
    for (const row of body.rows) {
      const seen = row.textContent.toLowerCase().includes(wanted) &&
        (!status || row.dataset.status === status) &&
        (!group || group.value === "" || row.dataset.group === group.value.slice(1)) &&
        (!chosen || chosen.has(row.dataset.image));
      row.hidden = !seen;
      n += seen;
    }
    element("shown").textContent = n.toLocaleString("en") + " of " +
      body.rows.length.toLocaleString("en") + " images shown";
  }

  function compare(x, y) {
    if (x === "" || y === "") return (x === "") - (y === "");
    return isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
  }
  function sort(head, column) {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.v || "";
    const empty = (row) => value(row) === "";
    const rows = [...body.rows].sort((a, b) =>
      compare(value(a), value(b)) * (up || empty(a) || empty(b) ? 1 : -1));
    body.append(...rows);
  }

  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    head.querySelector("button")?.addEventListener("click", () => sort(head, column));
  }
  for (const id of ["text", "group", "status"]) element(id)?.addEventListener("input", filter);
  filter();

  if (element("figures")) {
    const [data, model] = await drawn();
    const points = model("images"), strips = model("strips");

    function show(key) {
      const one = data.measures[key];
      const rows = [...data.images.keys()].filter((k) => one.values[k] !== null);
      points.selected.indices = [];
      points.data = {
        x: rows.map((k) => one.values[k]),
        y: rows.map((k) => data.group[k] + data.spread[k]),
        name: rows.map((k) => data.images[k]),
        text: rows.map((k) => one.text + ": " + one.values[k]),
      };
      const middles = [...one.medians.keys()].filter((k) => one.medians[k] !== null);
      model("medians").data = {
        x: middles.map((k) => one.medians[k]),
        top: middles.map((k) => k - 0.35),
        bottom: middles.map((k) => k + 0.35),
      };
      const low = Math.min(...points.data.x), high = Math.max(...points.data.x);
      const room = 0.04 * (high - low) || 0.5;
      strips.x_range.setv({ start: low - room, end: high + room });
      strips.below[0].axis_label = one.text;
      element("effects").replaceChildren(...one.lines.map((cells, k) => {
        const line = document.createElement("tr");
        for (const [place, text] of [data.names[k], ...cells].entries()) {
          const cell = document.createElement(place ? "td" : "th");
          if (place) cell.className = "n"; else cell.scope = "row";
          cell.textContent = text;
          line.append(cell);
        }
        return line;
      }));
    }

    points.selected.properties.indices.change.connect(() => {
      const found = points.selected.indices;
      chosen = found.length ? new Set(found.map((k) => points.data.name[k])) : null;
      element("all").disabled = !chosen;
      filter();
    });
    element("all").addEventListener("click", () => { points.selected.indices = []; });
    element("measure").addEventListener("change", (event) => show(event.target.value));
    show(element("measure").value);
  }
  document.body.dataset.drawn = "yes";
})().catch(refused);
