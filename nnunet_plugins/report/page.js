"use strict";
// Headers become buttons that sort their table; what is missing stays last in either direction.
const makeSortable = (table) => {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const numeric = header.classList.contains("number");
      const value = (row) => row.cells[column].dataset.value;
      const compare = (a, b) => (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        return ascending ? compare(left, right) : compare(right, left);
      });
      table.tBodies[0].append(...rows);
    });
  });
};
// What is in a template is no part of the page yet: a chapter or long table until it is opened, a figure until it is near.
const near = new IntersectionObserver(
  (entries) => entries.forEach((entry) => entry.isIntersecting && fill(entry.target)),
  { rootMargin: "800px" },
);
const prepare = (part) => {
  part.querySelectorAll("table[data-sortable]").forEach(makeSortable);
  part.querySelectorAll("div[data-waiting]").forEach((place) => near.observe(place));
  part.querySelectorAll("details[data-waiting]").forEach((folded) =>
    folded.addEventListener("toggle", () => folded.open && fill(folded)),
  );
};
const fill = (place) => {
  near.unobserve(place);
  const template = place.querySelector(":scope > template");
  if (!template) return;
  template.replaceWith(template.content);
  prepare(place);
};
const waiting = () => [...document.querySelectorAll("template")];
prepare(document);
// A link may lead into what is folded up.
const reveal = () => {
  const id = decodeURIComponent(location.hash.slice(1));
  if (!id) return;
  const holder = waiting().find((template) => template.content.getElementById(id));
  if (holder) fill(holder.parentElement);
  const target = document.getElementById(id);
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  target?.scrollIntoView();
};
window.addEventListener("hashchange", reveal);
// The browser tells of no change if the place is the last one again, which may be folded up since.
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.hash === location.hash) reveal();
});
reveal();
// The list of comparisons lies over the page: it closes when it has led somewhere, and with Escape.
const list = document.querySelector("nav details");
list?.addEventListener("click", (event) => {
  if (event.target.closest("a")) list.open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !list?.open) return;
  list.open = false;
  list.querySelector("summary").focus();
});
// What is folded up is printed too, and folded up again.
const unfolded = [];
window.addEventListener("beforeprint", () => {
  while (waiting().length) waiting().forEach((template) => fill(template.parentElement));
  unfolded.push(...document.querySelectorAll("main details:not([open])"));
  for (const part of unfolded) part.open = true;
});
window.addEventListener("afterprint", () => {
  for (const part of unfolded.splice(0)) part.open = false;
});
