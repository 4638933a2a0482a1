"use strict";
// Filters of the episode browser: an episode is shown where every chosen value is its own.
const filters = [...document.querySelectorAll(".filters select")];
const episodes = [...document.querySelectorAll("details.episode")];
const counter = document.querySelector("#shown");
function show() {
  let shown = 0;
  for (const episode of episodes) {
    const fits = filters.every((filter) => filter.value === "" || episode.dataset[filter.name] === filter.value);
    episode.hidden = !fits;
    shown += fits;
  }
  counter.textContent = shown + " of " + episodes.length + " shown";
}
for (const filter of filters) filter.addEventListener("change", show);
if (counter) show();
