// The table of the workers.
function build(row) {
  const el = at('row').content.firstElementChild.cloneNode(true);
  const find = selector => el.querySelector(selector);
  row.el = el;
  row.parts = { open: find('.open'), state: find('.state'), id: find('.c-id bdi'), type: find('.c-type bdi'), task: find('.task'),
    steps: find('.steps'), bar: find('progress'), count: find('.count'), why: find('.why'), reason: find('.reason'), run: find('.c-run bdi'),
    heartbeat: find('.heartbeat'), progress: find('.progress'), restarts: find('.c-restarts'), strip: find('.strip') };
  row.parts.open.addEventListener('click', () => toggle(row));
  row.dirty = row.stripDirty = true;
  if (open.has(row.id)) expand(row);
}
function paint(row) {
  const parts = row.parts;
  row.dirty = false;
  badge(parts.state, row.state);
  const name = 'Details of ' + plain(row.id) + ', ' + stateName(row.state);
  if (row.named !== name) parts.open.setAttribute('aria-label', row.named = name);
  row.el.classList.toggle('bad', UNHEALTHY.has(row.state));
  row.el.classList.toggle('over', ENDED.has(row.state));
  putPlain(parts.id, row.id);
  putPlain(parts.type, row.type);
  putPlain(parts.task, row.task || '');
  putPlain(parts.run, row.run || '');
  put(parts.restarts, row.restarts ? String(row.restarts) : '0');
  parts.steps.hidden = !row.done;
  if (row.done) {
    parts.bar.max = Math.max(1, row.done[1]);
    parts.bar.value = Math.min(...row.done);
    put(parts.count, row.done[0] + ' of ' + row.done[1]);
    parts.bar.setAttribute('aria-label', 'Steps of its task: ' + row.done[0] + ' of ' + row.done[1]);
  }
  parts.why.hidden = !row.reason;
  paintAges(row);
}
function paintAges(row) {
  const now = serverTime(), parts = row.parts;
  put(parts.heartbeat, row.heartbeat == null ? 'never' : age(now - row.heartbeat));
  put(parts.progress, row.progress == null ? '–' : age(now - row.progress));
  if (!row.reason) return;
  const ended = row.ended == null ? '' : age(now - row.ended) + ' ago';
  const heard = row.heard == null ? '' : 'last heard of ' + age(now - row.heard) + ' ago, found ';
  putPlain(parts.reason, ended ? row.reason + ', ' + heard + ended : row.reason);
}
function paintStrip(row) {
  row.stripDirty = false;
  const bad = [], good = [], periods = [];
  const percent = n => (n / buckets * 100).toFixed(2) + '%';
  for (let from = 0, to; from < buckets; from = to) {
    to = from + 1;
    while (to < buckets && row.marks[to] === row.marks[from]) to += 1;
    const state = letters[row.marks[from]], place = ' ' + percent(from) + ' ' + percent(to);
    const colour = state ? 'var(--' + state + ')' : 'transparent';
    bad.push((UNHEALTHY.has(state) ? colour : 'transparent') + place);
    good.push((UNHEALTHY.has(state) ? 'transparent' : colour) + place);
    if (state) periods.push(stateName(state) + ' for ' + age((to - from) * bucketSeconds));
  }
  // Unhealthy states are tall and healthy ones low, so that they differ not only by colour.
  const style = row.parts.strip.style;
  style.backgroundImage = 'linear-gradient(to right,' + bad.join() + '),linear-gradient(to right,' + good.join() + ')';
  style.backgroundSize = '100% 100%,100% 45%';
  const text = 'Last 10 minutes: ' + (periods.slice(-12).join(', then ') || 'no readings');
  row.parts.strip.setAttribute('aria-label', text);
  row.parts.strip.title = text;
}

// Reorders the children with the fewest moves. Children that don't move keep the focus.
function arrange(container, wanted) {
  const places = new Map();
  [...container.children].forEach((child, n) => places.set(child, n));
  const keep = new Set(longestIncreasing(wanted.map(child => places.has(child) ? places.get(child) : -1)).map(n => wanted[n]));
  const stay = new Set(wanted);
  for (const child of [...container.children]) if (!stay.has(child)) child.remove();
  const focused = document.activeElement;
  let before = null;
  for (let n = wanted.length - 1; n >= 0; n -= 1) {
    const child = wanted[n];
    if (!keep.has(child)) container.insertBefore(child, before);
    before = child;
  }
  if (focused !== document.activeElement && container.contains(focused)) focused.focus({ preventScroll: true });
}
// The indices of the longest increasing subsequence of the numbers that are not negative.
function longestIncreasing(numbers) {
  const ends = [], from = [];
  numbers.forEach((number, n) => {
    if (number < 0) return;
    let low = 0, high = ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (numbers[ends[middle]] < number) low = middle + 1; else high = middle;
    }
    from[n] = low > 0 ? ends[low - 1] : -1;
    ends[low] = n;
  });
  const found = [];
  for (let n = ends.length ? ends[ends.length - 1] : -1; n >= 0; n = from[n]) found.push(n);
  return found.reverse();
}

let pending = false;
function draw() {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; drawNow(); });
}
function drawNow() {
  const begun = performance.now();
  const visible = settings.all ? drawn : drawn.slice(0, MAX_DRAWN);
  for (const row of visible) {
    if (!row.el) build(row);
    if (row.dirty) paint(row); else paintAges(row);
    if (row.stripDirty) paintStrip(row);
  }
  const container = at('rows'), elements = visible.map(row => row.el);
  if (elements.length !== container.children.length || elements.some((el, n) => container.children[n] !== el)) arrange(container, elements);
  drawHead();
  drawControls();
  put(at('count'), drawn.length === rows.size ? '(' + rows.size + ')' : '(' + drawn.length + ' of ' + rows.size + ')');
  const none = at('empty');
  none.hidden = drawn.length > 0 || !hasReading;
  put(none, rows.size ? 'No worker matches the filter.' : 'There are no workers.');
  const more = at('more');
  more.hidden = visible.length === drawn.length;
  put(more, 'Show ' + (drawn.length - visible.length) + ' more');
  // For tests that measure the page.
  window.drawTook = performance.now() - begun;
}
