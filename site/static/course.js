// A page that was opened as a file may not fetch others: a search there shows titles alone.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// What scrolls sideways can be reached by the keyboard, and landmarks of one kind have names of their own.
const SCROLL = "pre, div.math, span.math mjx-container, .cell_output, .table-wrapper";
function reachable() {
  for (const region of document.querySelectorAll(SCROLL)) if (region.scrollWidth > region.clientWidth) region.tabIndex = 0;
}
addEventListener("DOMContentLoaded", () => {
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "all pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "this page");
});
addEventListener("load", () => { reachable(); window.MathJax?.startup?.promise?.then(reachable); });
addEventListener("resize", reachable);
