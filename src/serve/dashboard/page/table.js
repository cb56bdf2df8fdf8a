// The table of the workers.
function build(row) {
  const el = at('row').content.firstElementChild.cloneNode(true);
  const find = selector => el.querySelector(selector);
  row.el = el;
  row.parts = { open: find('.open'), state: find('.state'), id: find('.c-id bdi'), type: find('.c-type bdi'), task: find('.task'),
    steps: find('.steps'), bar: find('progress'), count: find('.count'), why: find('.why'), reason: find('.reason'), run: find('.c-run bdi'),
    heartbeat: find('.heartbeat'), progress: find('.progress'), restarts: find('.c-restarts'), strip: find('.strip') };
  el.row = row;
  row.isOpen = false;
  // The whole row opens it, except where text is being selected.
  el.firstElementChild.addEventListener('click', () => { if (getSelection().isCollapsed) toggle(row.id); });
  row.dirty = row.stripDirty = true;
}
function paint(row) {
  const parts = row.parts;
  row.dirty = false;
  badge(parts.state, row.state);
  const name = 'Details of ' + plain(row.id) + ', ' + stateName(row.state);
  if (row.named !== name) parts.open.setAttribute('aria-label', row.named = name);
  row.el.classList.toggle('bad', UNHEALTHY.has(row.state));
  row.el.classList.toggle('over', ENDED.has(row.state));
  row.el.classList.toggle('gone', row.gone);
  putMiddle(parts.id, row.id);
  putMiddle(parts.type, row.type);
  putPlain(parts.task, row.task || '');
  putMiddle(parts.run, row.run || '');
  put(parts.restarts, row.restarts ? String(row.restarts) : '0');
  parts.steps.hidden = !row.done;
  if (row.done) {
    parts.bar.max = Math.max(1, row.done[1]);
    parts.bar.value = Math.min(...row.done);
    put(parts.count, row.done[0] + ' of ' + row.done[1]);
    parts.bar.setAttribute('aria-label', 'Steps of its task: ' + row.done[0] + ' of ' + row.done[1]);
  }
  parts.why.hidden = !row.gone && !row.reason && !UNHEALTHY.has(row.state);
  paintAges(row);
}
// Since when a worker is as it is, as far as its row says.
function sinceText(row) {
  const now = serverTime();
  if (row.ended != null) return (row.heard == null ? '' : 'last heard of ' + age(now - row.heard) + ' ago, found ') + age(now - row.ended) + ' ago';
  if (row.state === 'stale' && row.heartbeat != null) return 'no heartbeat for ' + age(now - row.heartbeat);
  if (row.state === 'stalled' && row.progress != null) return 'no progress for ' + age(now - row.progress);
  return '';
}
function paintAges(row) {
  const now = serverTime(), parts = row.parts;
  put(parts.heartbeat, row.heartbeat == null ? 'never' : age(now - row.heartbeat));
  put(parts.progress, row.progress == null ? '–' : age(now - row.progress));
  if (parts.why.hidden) return;
  const reason = [row.reason, sinceText(row)].filter(Boolean).join(', ');
  putPlain(parts.reason, row.gone ? (rows.size < MAX_ROWS ? 'no longer in the list' : 'no longer among those that are shown') + (reason ? '; was: ' + reason : '') : reason || stateName(row.state));
}
// The time itself, as long as the pointer is over an age.
at('rows').addEventListener('pointerover', event => {
  const cell = event.target.closest('.c-age');
  const row = cell && cell.closest('.worker').row;
  if (!row) return;
  const time = cell.classList.contains('heartbeat') ? row.heartbeat : row.progress;
  cell.title = time == null ? '' : absolute(wallTime(time));
});
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
  for (const row of drawn) {
    if (!row.el) build(row);
    if (row.dirty) paint(row); else paintAges(row);
    if (row.stripDirty) paintStrip(row);
  }
  const container = at('rows'), elements = drawn.map(row => row.el);
  if (elements.length !== container.children.length || elements.some((el, n) => container.children[n] !== el)) arrange(container, elements);
  drawPanels();
  drawHead();
  drawControls();
  drawList();
  // For tests that measure the page.
  window.drawTook = performance.now() - begun;
}
function drawList() {
  const all = head && head.total !== undefined ? head.total : 0, n = matching.toLocaleString('en'), more = head && head.next;
  put(at('count'), !hasReading ? '' : more && shownSelection === '' ? '(the worst ' + n + ' of ' + all.toLocaleString('en') + ')'
    : settings.from && shownSelection !== '' ? '(' + n + (more ? ' on this page' : ' on the last page') + ', of ' + all.toLocaleString('en') + ')'
      : more ? '(the worst ' + n + ' that match, of ' + all.toLocaleString('en') + ')'
        : matching === all ? '(' + n + ')' : '(' + n + ' of ' + all.toLocaleString('en') + ')');
  const again = at('again');
  again.hidden = movedCount === 0;
  put(again, 'Sort again: ' + count(movedCount, 'row') + (movedCount === 1 ? ' has moved' : ' have moved'));
  at('next').hidden = !more;
  if (more) put(at('next'), 'Show the next ' + MAX_ROWS.toLocaleString('en'));
  at('first').hidden = !settings.from;
  const search = isPartial ? 'id, type, group' : 'id, type, group, task, run, reason';
  if (at('filter').placeholder !== search) at('filter').placeholder = search;
  drawEmpty();
}
// Without workers, the page says how one gets in.
function drawEmpty() {
  const empty = at('empty');
  empty.hidden = drawn.length > 0 || !hasReading;
  const which = empty.hidden ? '' : isFiltered() || settings.from ? 'none' : settings.view;
  if (empty.dataset.which === which) return;
  empty.dataset.which = which;
  const code = text => make('code', '', text);
  const lines = { '': [], none: [['No worker matches the filter.']],
    process: [['There are no workers.'], ['A worker gets in when this process starts one: ', code('WorkerHeartbeat::builder("mailer").start()?')]],
    fleet: [['There are no workers.'], ['No process has registered a worker in this store yet. A process gets in with ', code('registry.attach(store, FleetConfig::new())?'), ', where ', code('store'), ' is this database, or ', code('HttpStore'), ' with the address of a coordinator.'],
      ['Programs in other languages register at a coordinator: ', code('POST /api/worker/register'), '.']] }[which];
  empty.replaceChildren(...lines.map(parts => { const line = make('p'); line.append(...parts); return line; }));
}
