"use strict";
// Asks every few seconds what has changed, and replaces the page's content where something has.
{
  const { seconds, version } = document.currentScript.dataset;
  const [summary, nav, main] = ["header p", "nav", "main"].map((s) => document.querySelector(s));
  let seen = version;
  const replace = async (state) => {
    const fresh = document.createElement("main");
    fresh.innerHTML = state.main;
    // Images that were not loaded yet would make the text below them jump.
    await Promise.allSettled([...fresh.querySelectorAll("img")].map((image) => image.decode()));
    nav.innerHTML = state.nav;
    main.replaceChildren(...fresh.childNodes);
    seen = state.version;
  };
  const update = async () => {
    try {
      const answer = await fetch(`state.json?since=${encodeURIComponent(seen)}`);
      if (!answer.ok) throw new Error(answer.statusText);
      const state = await answer.json();
      document.title = state.title;
      summary.textContent = state.summary;
      if (state.version !== seen) await replace(state);
    } catch {
      summary.textContent = "binarize view no longer answers: start it again and reload this page";
    }
    setTimeout(update, 1000 * seconds);
  };
  setTimeout(update, 1000 * seconds);
}
