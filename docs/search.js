// A browser lets a page that was opened as a file start no worker, and so search nothing: say what does.
if (location.protocol === "file:") {
  addEventListener("DOMContentLoaded", () => {
    const input = document.querySelector(".md-search__input");
    input.placeholder = "To search, open the site with: mkdocs serve";
    input.disabled = true;
  });
}
