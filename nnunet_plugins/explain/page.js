"use strict";
// Slices of an image with a map above it; all pictures are in the page.
const cases = JSON.parse(document.getElementById("slices").textContent);
for (const viewer of document.querySelectorAll(".viewer")) {
  const { below, numbers, aspect, above } = cases[viewer.dataset.case];
  const [map, slice, opacity] = ["map", "slice", "opacity"].map((name) => viewer.querySelector(`[name=${name}]`));
  const [lower, upper] = viewer.querySelectorAll(".stack img");
  const show = () => {
    const stack = above[map.value];
    lower.src = below[slice.value];
    upper.src = stack.slices[slice.value];
    upper.style.opacity = opacity.value / 100;
    viewer.querySelector("output").textContent = numbers[slice.value];
    const names = stack.names.length ? stack.names : [stack.low.toPrecision(3), stack.high.toPrecision(3)];
    viewer.querySelector(".range").replaceChildren(
      ...names.map((name) => Object.assign(document.createElement("span"), { textContent: name })),
    );
  };
  // Voxels are not always squares.
  lower.addEventListener("load", () => {
    viewer.querySelector(".stack").style.aspectRatio = lower.naturalWidth / (lower.naturalHeight * aspect);
  });
  slice.max = below.length - 1;
  slice.value = below.length >> 1;
  for (const control of [map, slice, opacity]) control.addEventListener("input", show);
  viewer.hidden = false;
  show();
}
