(() => {
  const root = document.documentElement, all = (css, from = document) => [...from.querySelectorAll(css)];
  document.getElementById("theme").onclick = () => {
    root.dataset.theme = getComputedStyle(document.body).backgroundColor === "rgb(255, 255, 255)" ? "dark" : "light";
    try { localStorage.theme = root.dataset.theme } catch (e) {}
  };

  const wide = matchMedia("(min-width: 75.01rem)");
  const unfold = () => all(".pages details, .toc details").forEach(d => d.open = wide.matches);
  wide.addEventListener("change", unfold);
  unfold();

  for (const set of all(".tabset")) {
    const tabs = all(":scope > .tabs > [role=tab]", set);
    const show = chosen => tabs.forEach(tab => {
      const on = tab === chosen;
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !on;
    });
    tabs.forEach((tab, i) => {
      tab.onclick = () => show(tab);
      tab.onkeydown = event => {
        const step = { ArrowRight: i + 1, ArrowLeft: i - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
        if (step === undefined) return;
        const next = tabs[step % tabs.length];
        show(next); next.focus(); event.preventDefault();
      };
    });
    if (tabs.length) show(tabs[0]);
  }

  const reachable = () => all("pre, .scroll, .cell-output, .equation, math[display=block]").forEach(box => {
    const inside = box.querySelector("button, a[href]:not([tabindex]), input, select, summary");
    const wide = box.scrollWidth > box.clientWidth + 1;
    box.toggleAttribute("data-wide", wide);
    if (wide && !inside) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
  addEventListener("load", reachable);
  addEventListener("resize", reachable);

  const links = new Map(all(".toc a").map(a => [decodeURIComponent(a.hash.slice(1)), a]));
  const heads = [...links.keys()].map(id => document.getElementById(id)).filter(Boolean);
  const follow = () => {
    const here = heads.filter(head => head.getBoundingClientRect().top < innerHeight * 0.3).pop();
    links.forEach((a, id) => here && id === here.id ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current"));
  };
  addEventListener("scroll", follow, { passive: true });
  follow();
})();
