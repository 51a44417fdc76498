// Not a module: it runs before the first paint, so that the page never flashes in the other theme.
(() => {
  const known = ["light", "dark"];
  let stored = null;
  try {
    stored = localStorage.getItem("cones2.theme");
  } catch {
    // Without storage the system's theme is used.
  }
  if (known.includes(stored)) document.documentElement.dataset.theme = stored;
})();
