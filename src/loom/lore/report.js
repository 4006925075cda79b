"use strict";
// What a report's page does by itself: tables that sort, and around the charts the legend and what a tooltip says.
const loom = (() => {
  const read = (id) => {
    const found = document.getElementById(id);
    return found ? JSON.parse(found.textContent) : null;
  };
  const names = read("loom-names") || { names: [], rows: [], workers: [] };
  const NUMBER_BITS = 2 ** 40; // of a task's id are its number in the session
  const SERVER_MADE = 2 ** 39; // and from here on those that tell people nothing

  const digits = (value) => (value >= 99.95 || value === Math.round(value) ? Math.round(value).toLocaleString("en") : value >= 9.995 ? value.toFixed(1) : value.toFixed(2));
  const duration = (s) => {
    if (s >= 3599.5) return `${Math.floor(Math.round(s / 60) / 60)} h ${Math.round(s / 60) % 60} min`;
    if (s >= 99.95) return `${Math.floor(Math.round(s) / 60)} min ${Math.round(s) % 60} s`;
    if (s >= 0.9995) return `${digits(s)} s`;
    return s >= 0.0009995 ? `${digits(s * 1e3)} ms` : `${digits(s * 1e6)} \u00b5s`;
  };
  const size = (bytes) => {
    let unit = 0;
    for (; bytes >= 1023.5 && unit < 5; unit++) bytes /= 1024;
    return `${unit ? digits(bytes) : Math.round(bytes)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit]}`;
  };
  const decimals = (ticks, unit) => {
    const step = ticks.length > 1 ? Math.abs(ticks[1] - ticks[0]) / unit : 1;
    return Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9)));
  };
  const formats = {
    name: (value) => names.names[value],
    id: (value) => {
      const session = Math.floor(value / NUMBER_BITS);
      const number = value % NUMBER_BITS;
      return (number < SERVER_MADE ? `${number}` : "none: made by the server") + (names.sessions > 1 ? ` (session ${session})` : "");
    },
    worker: (row) => names.workers[names.rows[row][0]],
    core: (row) => (names.rows[row][1] === null ? "none: in the worker's loop" : `${names.rows[row][1]}`),
    start: (s) => `${s.toFixed(6)} s`,
    duration,
    size,
    count: (value) => (value === 1 ? "1" : `${value.toLocaleString("en")}, merged`),
    tick: (s, ticks) => {
      const largest = Math.max(...ticks.map(Math.abs));
      if (largest >= 600 && s >= 0) {
        const seconds = s - 60 * Math.floor(s / 60);
        const after = decimals(ticks, 1);
        return `${Math.floor(s / 60)}:${seconds.toFixed(after).padStart(after ? after + 3 : 2, "0")} min`;
      }
      const [unit, name] = largest >= 1 ? [1, "s"] : largest >= 1e-3 ? [1e-3, "ms"] : [1e-6, "\u00b5s"];
      return `${(s / unit).toFixed(decimals(ticks, unit))} ${name}`;
    },
  };

  const sortBy = (head) => {
    const table = head.closest("table");
    const column = [...head.parentNode.children].indexOf(head);
    const down = !head.classList.contains("down");
    for (const other of head.parentNode.children) other.classList.remove("down", "up");
    head.classList.add(down ? "down" : "up");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [row.cells[column].dataset.key, row]);
    const numbers = head.classList.contains("number");
    rows.sort(([a], [b]) => (numbers ? Number(b) - Number(a) : a.localeCompare(b)) * (down ? 1 : -1));
    body.append(...rows.map(([, row]) => row));
  };
  for (const head of document.querySelectorAll(".sortable th")) head.addEventListener("click", () => sortBy(head));

  const markCut = (picture) => {
    const { scrollWidth, clientWidth, scrollHeight, clientHeight } = picture;
    picture.previousElementSibling.hidden = scrollWidth <= clientWidth + 1 && scrollHeight <= clientHeight + 1;
  };
  for (const picture of document.querySelectorAll(".picture")) {
    const hint = document.createElement("p");
    hint.className = "cut";
    hint.hidden = true;
    hint.textContent = "The drawing is larger than its frame: scroll in it to see the rest.";
    picture.before(hint);
    new ResizeObserver(() => markCut(picture)).observe(picture);
  }

  const show = async () => {
    const charts = read("loom-charts");
    if (charts === null) return;
    Bokeh.set_log_level("warn");
    const views = await Bokeh.embed.embed_item(charts, "charts");
    const chart_document = Bokeh.documents[0];
    for (const button of document.querySelectorAll(".legend button")) {
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", shown);
        chart_document.get_model_by_name(button.dataset.model).visible = shown;
      });
    }
    requestAnimationFrame(() => setTimeout(() => (document.documentElement.dataset.painted = Math.round(performance.now()))));
    return views;
  };
  return { formats, names, shown: show() };
})();
