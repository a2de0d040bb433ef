(async function () {
  "use strict";
  const [data, model] = await drawn();
  const element = (id) => document.getElementById(id);
  const column = (key) => data.columns.find((one) => one.key === key);
  const n = data.labels.length;
  let picked = [], pointed = null, by = null, quiet = false;

  function number(value) {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return String(value);
    return Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  }

  // Outlines of a section in the lengths of the plane; pieces of an object are parted by NaN.
  function decoded(plane, section) {
    const [across, down] = plane.scale, xs = [], ys = [];
    for (const lines of section.lines) {
      const x = [], y = [];
      for (const steps of lines) {
        if (x.length) { x.push(NaN); y.push(NaN); }
        let left = 0, top = 0;
        for (let k = 0; k < steps.length; k += 2) {
          left += steps[k];
          top += steps[k + 1];
          x.push(left * across);
          y.push(top * down);
        }
      }
      xs.push(x);
      ys.push(y);
    }
    return [xs, ys];
  }

  function values(rows) {
    return rows.map((row) => by === null ? row % data.identity.length : by.values[row] ?? NaN);
  }
  function texts(rows) {
    return rows.map((row) => by === null ? "" : by.text + ": " + number(by.values[row]));
  }

  function brightened(image) {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const pen = canvas.getContext("2d");
    pen.filter = "brightness(2.2)";
    pen.drawImage(image, 0, 0);
    return canvas.toDataURL("image/jpeg", 0.8);
  }
  async function picture(url) {
    if (!element("bright").checked) return url;
    const image = new Image();
    image.src = url;
    await image.decode();
    return brightened(image);
  }

  async function show(plane, k) {
    plane.at = k;
    const section = plane.sections[k], source = plane.objects;
    const [xs, ys] = decoded(plane, section), rows = section.rows;
    source.data = {
      xs, ys, row: rows, value: values(rows), text: texts(rows),
      name: rows.map((row) => "Object " + data.labels[row]),
    };
    mark(plane);
    model("overlay " + plane.name).data = { url: section.overlay ? [section.overlay] : [] };
    const url = await picture(section.picture);
    if (plane.at === k) model("picture " + plane.name).data = { url: [url] };
    const slider = element("slice-" + plane.name);
    if (slider) {
      slider.value = k;
      slider.setAttribute("aria-valuetext", plane.axis + " = " + section.at);
      element("at-" + plane.name).textContent = plane.axis + " = " + section.at;
    }
  }

  // The chosen objects of the section that is shown.
  function mark(plane) {
    const wanted = new Set(picked), rows = plane.objects.data.row;
    quiet = true;
    plane.objects.selected.indices = [...rows.keys()].filter((k) => wanted.has(rows[k]));
    quiet = false;
  }

  function median(numbers) {
    const known = numbers.filter((one) => typeof one === "number").sort((a, b) => a - b);
    if (!known.length) return null;
    const half = known.length >> 1;
    return known.length % 2 ? known[half] : (known[half - 1] + known[half]) / 2;
  }

  function tell() {
    const rows = pointed === null ? picked : [pointed];
    const title = rows.length === 0 ? "No object chosen: point at one, click it, or give its number"
      : rows.length === 1 ? "Object " + data.labels[rows[0]]
      : rows.length.toLocaleString("en") + " objects, medians";
    element("chosen").textContent = title;
    if (pointed === null) element("said").textContent = title;
    element("row").replaceChildren(...(rows.length ? data.columns : []).map((one) => {
      const line = document.createElement("tr"), head = document.createElement("th");
      const cell = document.createElement("td");
      head.scope = "row";
      head.textContent = one.text;
      cell.className = "n";
      const value = rows.length === 1 ? one.values[rows[0]] : median(rows.map((r) => one.values[r]));
      cell.textContent = number(value);
      line.append(head, cell);
      return line;
    }));
  }

  function choose(rows) {
    picked = rows;
    pointed = null;
    data.planes.forEach(mark);
    data.histograms.forEach((one) => count(one, "picked", picked));
    element("clear").disabled = !picked.length;
    if (picked.length === 1) element("object").value = data.labels[picked[0]];
    tell();
  }

  function edgesOf(one) {
    if (one.edges) return one.edges;
    const known = (by ? by.values : []).filter((value) => typeof value === "number");
    let low = known.reduce((a, b) => Math.min(a, b), Infinity);
    let high = known.reduce((a, b) => Math.max(a, b), -Infinity);
    if (!known.length) { low = 0; high = 1; }
    if (!(high > low)) { low -= 0.5; high += 0.5; }
    const bins = Math.floor(Math.min(48, Math.max(8, 1.5 * Math.sqrt(known.length))));
    return Array.from({ length: bins + 1 }, (_, k) => low + (high - low) * k / bins);
  }
  function valuesOf(one) { return one.column === null ? (by ? by.values : []) : column(one.column).values; }

  function count(one, kind, rows) {
    const edges = edgesOf(one), counts = new Array(edges.length - 1).fill(0), all = valuesOf(one);
    for (const row of rows) {
      const value = all[row];
      if (typeof value !== "number" || value < edges[0] || value > edges[edges.length - 1]) continue;
      let low = 0, high = edges.length - 1;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (value < edges[middle]) high = middle; else low = middle;
      }
      counts[low] += 1;
    }
    model(kind + " " + one.name).data = { left: edges.slice(0, -1), right: edges.slice(1), top: counts };
  }

  function colour(key) {
    by = key === "" ? null : column(key);
    const mapper = model("colours"), bar = model("bar");
    let low = 0, high = data.identity.length - 1;
    if (by) {
      const known = by.values.filter((value) => typeof value === "number").sort((a, b) => a - b);
      low = known.length ? known[Math.floor(0.01 * (known.length - 1))] : 0;
      high = known.length ? known[Math.ceil(0.99 * (known.length - 1))] : 1;
      if (!(high > low)) { low -= 0.5; high += 0.5; }
      bar.setv({ low, high });
      element("unit").textContent = by.text;
    }
    mapper.setv({ palette: by ? data.palette : data.identity, low, high });
    element("bar-place").style.visibility = by ? "visible" : "hidden";
    for (const plane of data.planes) {
      const rows = plane.objects.data.row;
      plane.objects.data = { ...plane.objects.data, value: values(rows), text: texts(rows) };
      mark(plane);
    }
    const follows = data.histograms.find((one) => one.column === null);
    element("followed").hidden = !by || data.histograms.some((one) => one.column === key);
    if (by) {
      const edges = edgesOf(follows), figure = model("histogram " + follows.name);
      figure.x_range.setv({ start: edges[0], end: edges[edges.length - 1] });
      const middle = median(by.values);
      figure.title.text = "median " + number(middle);
      figure.below[0].axis_label = by.text;
      count(follows, "all", data.labels.keys());
      count(follows, "picked", picked);
    }
  }

  // Bring an object into view: its section, and its place when that is outside.
  function reach(row, closer) {
    const at = {};
    for (const axis of "zyx") at[axis] = column(axis + "_px")?.values[row];
    for (const plane of data.planes) {
      if (!plane.axis) continue;
      const away = plane.sections.map((one) => Math.abs(one.at - at[plane.axis]));
      show(plane, away.indexOf(Math.min(...away)));
    }
    for (const plane of data.planes) {
      const figure = model("plane " + plane.name);
      const [across, down] = plane.axes;
      const ranges = [[figure.x_range, across], [figure.y_range, down]];
      const zoom = closer ? Math.min(1, 12 * data.diameter / Math.abs(figure.x_range.end - figure.x_range.start)) : 1;
      for (const [range, axis] of ranges) {
        const half = zoom * (range.end - range.start) / 2, middle = (at[axis] + 0.5) * data.spacing[axis];
        const inside = (middle - range.start) * (middle - range.end) < 0;
        if (!inside || closer) range.setv({ start: middle - half, end: middle + half });
      }
    }
  }

  // The next object in the order of what colours them.
  function step(forward) {
    const rows = [...data.labels.keys()];
    if (by) rows.sort((a, b) => (by.values[a] ?? Infinity) - (by.values[b] ?? Infinity) || a - b);
    const here = picked.length === 1 ? rows.indexOf(picked[0]) : forward ? -1 : 0;
    const row = rows[(here + (forward ? 1 : n - 1)) % n];
    choose([row]);
    reach(row, false);
  }

  for (const plane of data.planes) {
    plane.objects = model("objects " + plane.name);
    plane.objects.selected.properties.indices.change.connect(() => {
      if (quiet) return;
      const rows = plane.objects.data.row;
      choose(plane.objects.selected.indices.map((k) => rows[k]));
    });
    plane.objects.inspect.connect(() => {
      const found = plane.objects.inspected.indices;
      pointed = found.length ? plane.objects.data.row[found[0]] : null;
      tell();
    });
    const slider = element("slice-" + plane.name);
    if (slider) slider.addEventListener("input", () => show(plane, Number(slider.value)));
  }
  element("found").addEventListener("change", visible);
  element("seam")?.addEventListener("change", visible);
  element("bright").addEventListener("change", () =>
    data.planes.forEach((plane) => show(plane, plane.at)));
  function visible() {
    for (const plane of data.planes) {
      for (const name of ["outlines " + plane.name, "outlines " + plane.name + " of all"]) {
        model(name).visible = element("found").checked;
      }
      for (const one of model("plane " + plane.name).center) {
        if (one.name === "seam") one.visible = element("seam").checked;
      }
    }
  }
  for (const one of data.histograms) {
    if (one.column !== null) count(one, "all", data.labels.keys());
    model("histogram " + one.name).on_event("selectiongeometry", (event) => {
      if (event.final === false) return;
      const all = valuesOf(one), { x0, x1 } = event.geometry;
      const low = Math.min(x0, x1), high = Math.max(x0, x1);
      choose([...data.labels.keys()].filter((row) => all[row] !== null && all[row] >= low && all[row] <= high));
    });
  }
  if (n) {
    element("colour").addEventListener("change", (event) => colour(event.target.value));
    element("object").addEventListener("change", (event) => {
      const row = data.labels.indexOf(Number(event.target.value));
      if (row < 0) {
        element("said").textContent = "There is no object " + event.target.value +
          (data.all ? "." : " among those that can be chosen.");
        return;
      }
      choose([row]);
      reach(row, false);
    });
    element("previous").addEventListener("click", () => step(false));
    element("next").addEventListener("click", () => step(true));
    element("closer").addEventListener("click", () => { if (picked.length) reach(picked[0], true); });
    element("clear").addEventListener("click", () => choose([]));
    colour("");
    choose([]);
  }
  await Promise.all(data.planes.map((plane) => show(plane, plane.first)));
  visible();
  document.body.dataset.drawn = "yes";
})().catch(refused);
