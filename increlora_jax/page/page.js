"use strict";

// Each heat map has its frames as JSON; the slider shows one.
for (const heat of document.querySelectorAll(".heat")) {
  const slider = heat.querySelector("input");
  if (!slider) continue;
  const data = JSON.parse(heat.querySelector("script").textContent);
  const cells = heat.querySelectorAll("td.cell");
  const output = heat.querySelector("output");
  const write = (rank) => (Number.isInteger(rank) ? String(rank) : rank.toFixed(1));
  const show = () => {
    const frame = data.frames[Number(slider.value)];
    frame.ranks.forEach((rank, index) => {
      const cell = cells[index];
      const share = rank / data.highest;
      cell.textContent = write(rank);
      cell.style.setProperty("--v", share.toFixed(3));
      cell.classList.toggle("hot", share >= data.hot);
    });
    output.textContent = frame.label;
    slider.setAttribute("aria-valuetext", frame.label);
  };
  slider.hidden = false;
  slider.addEventListener("input", show);
  show();
}
