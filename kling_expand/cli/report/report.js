// Sliders, the choice between pictures, and filters. Without this script, the page still shows all jobs.
for (const slider of document.querySelectorAll(".stage input")) {
  const follow = () => slider.parentElement.style.setProperty("--at", slider.value + "%");
  slider.addEventListener("input", follow);
  follow();
}
for (const choice of document.querySelectorAll(".choice")) {
  const pictures = choice.previousElementSibling.querySelectorAll(".after");
  const buttons = [...choice.children];
  buttons.forEach((button, chosen) => button.addEventListener("click", () => {
    buttons.forEach((each, number) => each.setAttribute("aria-pressed", number === chosen));
    pictures.forEach((picture, number) => picture.classList.toggle("hidden", number !== chosen));
  }));
}
const filters = [...document.querySelectorAll("[data-filter]")];
for (const filter of filters) {
  filter.addEventListener("click", () => {
    for (const each of filters) each.setAttribute("aria-pressed", each === filter);
    for (const card of document.querySelectorAll(".card")) {
      card.hidden = filter.dataset.filter !== "all" && card.dataset.kind !== filter.dataset.filter;
    }
  });
}
