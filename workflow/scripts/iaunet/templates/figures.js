// Text that `plots.packed` compressed, from the element that holds it.
async function unpacked(id) {
  const bytes = Uint8Array.from(
    atob(document.getElementById(id).textContent.trim().split(",")[1]), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// Draw the figures of a page; return the numbers that belong to them, and models by name.
async function drawn() {
  const library = document.createElement("script");
  library.textContent = await unpacked("library");
  document.head.append(library);
  const data = JSON.parse(await unpacked("figures"));
  await Bokeh.embed.embed_items(data.documents, data.items);
  return [data, (name) => Bokeh.documents[0].get_model_by_name(name)];
}

// What tells that a page cannot be drawn, instead of nothing.
function refused(error) {
  const place = document.getElementById("undrawn");
  place.textContent = "The figures could not be drawn (" + error.message +
    "): they need Chrome or Edge 80, Firefox 113, Safari 16.4 or newer.";
  place.hidden = false;
  console.error(error);
}
