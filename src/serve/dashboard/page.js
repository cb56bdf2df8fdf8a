'use strict';
(() => {
const MOST_LOGGED = 200, MOST_DRAWN = 2000, QUIET_BETWEEN_NEWS = 5000, DETAILS_EVERY = 5;
const SIGNS = { dead: '✕', never_started: '⊘', stalled: '■', stale: '▲', unobserved: '?', starting: '◔',
  stopping: '◓', processing: '▶', active: '●', idle: '○', stopped: '–' };
const BAD = new Set(['dead', 'never_started', 'stalled', 'stale', 'unobserved']);
const OVER = new Set(['dead', 'stopped']);
const at = id => document.getElementById(id);
const words = state => state.replace('_', ' ');
const collator = new Intl.Collator('en', { numeric: true });
const shown = document.body.dataset.shown === 'yes';

// --- texts -----------------------------------------------------------------------------------------

// What nobody can see, or what turns the writing around, is shown by its number.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const plain = text => String(text).replace(UNSEEN, c => '⟨U+' + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0') + '⟩');
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
function say(element, text) {
  const seen = text == null ? '' : plain(text);
  put(element, seen);
  if (element.title !== seen) element.title = seen;
}
function age(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return s + ' s';
  if (s < 600) return Math.floor(s / 60) + ' min ' + (s % 60) + ' s';
  if (s < 3600) return Math.floor(s / 60) + ' min';
  if (s < 86400) return Math.floor(s / 3600) + ' h ' + Math.floor(s % 3600 / 60) + ' min';
  return Math.floor(s / 86400) + ' d ' + Math.floor(s % 86400 / 3600) + ' h';
}
function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text != null) element.textContent = plain(text);
  return element;
}
function badge(element, state) {
  if (element.dataset.state === state) return;
  element.dataset.state = state;
  element.className = 'state ' + state;
  const sign = make('span', '', SIGNS[state] || '?');
  sign.setAttribute('aria-hidden', 'true');
  element.replaceChildren(sign, words(state));
}

// --- what is known ---------------------------------------------------------------------------------

let rows = new Map(), head = null, bucket = 0, buckets = 120, bucketSeconds = 5;
let worstFirst = Object.keys(SIGNS), letters = {}, ranks = {};
let heard = 0, clock = 0, received = 0, everRead = false;
const open = new Set();
// What the filter looks at.
const TOLD = ['state', 'id', 'type', 'group', 'task', 'run', 'reason'];
const time = () => clock + (performance.now() - received) / 1000;

function takeIn(message) {
  heard = performance.now();
  if (message.full) {
    worstFirst = message.worst_first;
    worstFirst.forEach((state, n) => { letters[String.fromCharCode(97 + n)] = state; ranks[state] = n; });
    buckets = message.buckets;
    bucketSeconds = message.bucket_seconds;
    forgetAll();
  }
  clock = message.now;
  received = heard;
  head = message.head;
  // Whoever comes first comes before the first reading.
  everRead = head.total !== undefined;
  const steps = message.full ? 0 : Math.min(buckets, message.bucket - bucket);
  bucket = message.bucket;
  let moved = message.full || (message.gone || []).length > 0;
  for (const change of message.rows) {
    let row = rows.get(change.k);
    if (!row) rows.set(change.k, row = { k: change.k, marks: '.'.repeat(buckets), mark: '.', el: null, fresh: true });
    Object.assign(row, change);
    row.dirty = true;
    if (change.strip) {
      row.marks = change.strip.replace(/(\d+)(\D)/g, (_, n, mark) => mark.repeat(n));
      row.mark = row.marks[buckets - 1];
      row.strip = null;
    }
    if (TOLD.some(name => name in change)) {
      row.text = [words(row.state), ...TOLD.map(name => row[name])].join('\n').toLowerCase();
      const before = row.passes;
      row.passes = passes(row);
      moved = moved || before !== row.passes;
    }
    moved = moved || wish.sort in change;
  }
  for (const key of message.gone || []) remove(key);
  for (const row of rows.values()) advance(row, steps, message.steady);
  order(moved);
  draw();
}
// As the server does it: a mark for each bucket, and the last one as it is told.
function advance(row, steps, steady) {
  if (row.fresh) { row.fresh = false; row.stripDirty = true; if (row.marks.endsWith('.')) row.marks = row.marks.slice(0, -1) + row.mark; return; }
  if (steps > 0) {
    const before = row.marks[buckets - 1];
    row.marks = (row.marks + (steady ? before : '.').repeat(steps - 1) + row.mark).slice(-buckets);
    row.stripDirty = true;
  } else if (row.marks[buckets - 1] !== row.mark) {
    row.marks = row.marks.slice(0, -1) + row.mark;
    row.stripDirty = true;
  }
}
function forgetAll() {
  for (const row of rows.values()) if (row.el) row.el.remove();
  rows = new Map();
}
function remove(key) {
  const row = rows.get(key);
  if (row && row.el) row.el.remove();
  rows.delete(key);
}

// --- filter and order, kept in the address ---------------------------------------------------------

const wish = { q: '', states: new Set(), type: null, group: null, sort: 'state', down: false, view: 'process', all: false };
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  wish.q = asked.get('q') || '';
  wish.states = new Set((asked.get('state') || '').split(',').filter(state => state in SIGNS));
  wish.type = asked.get('type');
  wish.group = asked.get('group');
  const sort = asked.get('sort') || 'state';
  wish.down = sort.startsWith('-');
  wish.sort = Object.hasOwn(KEYS, sort.replace('-', '')) ? sort.replace('-', '') : 'state';
  const view = asked.get('view') === 'fleet' && document.body.dataset.fleet === 'yes' ? 'fleet' : 'process';
  const other = view !== wish.view;
  wish.view = view;
  if (at('filter').value !== wish.q) at('filter').value = wish.q;
  return other;
}
function writeAddress() {
  const asked = new URLSearchParams();
  if (wish.q) asked.set('q', wish.q);
  if (wish.states.size) asked.set('state', [...wish.states].join(','));
  if (wish.type !== null) asked.set('type', wish.type);
  if (wish.group !== null) asked.set('group', wish.group);
  if (wish.sort !== 'state' || wish.down) asked.set('sort', (wish.down ? '-' : '') + wish.sort);
  if (wish.view !== 'process') asked.set('view', wish.view);
  const text = asked.toString();
  history.replaceState(null, '', text ? '#' + text : location.pathname + location.search);
}
function wished() {
  writeAddress();
  refilter();
}
function refilter() {
  for (const row of rows.values()) row.passes = passes(row);
  order(true);
  draw();
}
function passes(row) {
  if (wish.states.size && !wish.states.has(row.state)) return false;
  if (wish.type !== null && row.type !== wish.type) return false;
  if (wish.group !== null && row.group !== wish.group) return false;
  return wish.q.toLowerCase().split(/\s+/).every(word => row.text.includes(word));
}
const since = value => value == null ? Infinity : -value;
const KEYS = {
  state: row => ranks[row.state],
  id: row => row.id, type: row => row.type, task: row => row.task || '', run: row => row.run || '',
  heartbeat: row => since(row.heartbeat), progress: row => since(row.progress), restarts: row => row.restarts,
};
let drawn = [];
function order(changed) {
  if (!changed) return;
  const key = KEYS[wish.sort], sign = wish.down ? -1 : 1;
  const keyed = [];
  for (const row of rows.values()) if (row.passes) keyed.push([key(row), row]);
  const compare = typeof (keyed[0] || [0])[0] === 'string' ? (a, b) => collator.compare(a, b) : (a, b) => a < b ? -1 : a > b ? 1 : 0;
  keyed.sort((a, b) => sign * compare(a[0], b[0]) || collator.compare(a[1].id, b[1].id) || a[1].k - b[1].k);
  drawn = keyed.map(pair => pair[1]);
}

// --- the table -------------------------------------------------------------------------------------

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
  const name = 'Details of ' + plain(row.id) + ', ' + words(row.state);
  if (row.named !== name) parts.open.setAttribute('aria-label', row.named = name);
  row.el.classList.toggle('bad', BAD.has(row.state));
  row.el.classList.toggle('over', OVER.has(row.state));
  say(parts.id, row.id);
  say(parts.type, row.type);
  say(parts.task, row.task || '');
  say(parts.run, row.run || '');
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
  const now = time(), parts = row.parts;
  put(parts.heartbeat, row.heartbeat == null ? 'never' : age(now - row.heartbeat));
  put(parts.progress, row.progress == null ? '–' : age(now - row.progress));
  if (row.reason) say(parts.reason, row.ended == null ? row.reason : row.reason + ', ' + age(now - row.ended) + ' ago');
}
function paintStrip(row) {
  row.stripDirty = false;
  const bad = [], good = [], said = [];
  let from = 0;
  while (from < buckets) {
    let to = from + 1;
    while (to < buckets && row.marks[to] === row.marks[from]) to += 1;
    const state = letters[row.marks[from]];
    if (state) {
      const place = (from / buckets * 100).toFixed(2) + '% ' + (to / buckets * 100).toFixed(2) + '%';
      const colour = 'var(--' + state + ') ' + place;
      (BAD.has(state) ? bad : good).push(colour);
      (BAD.has(state) ? good : bad).push('transparent ' + place);
      said.push(words(state) + ' for ' + age((to - from) * bucketSeconds));
    } else {
      const place = 'transparent ' + (from / buckets * 100).toFixed(2) + '% ' + (to / buckets * 100).toFixed(2) + '%';
      bad.push(place);
      good.push(place);
    }
    from = to;
  }
  // What is wrong is tall, what is well is low: not only colours tell them apart.
  const style = row.parts.strip.style;
  style.backgroundImage = 'linear-gradient(to right,' + bad.join() + '),linear-gradient(to right,' + good.join() + ')';
  style.backgroundSize = '100% 100%,100% 45%';
  const text = 'Last 10 minutes: ' + (said.slice(-12).join(', then ') || 'nothing known');
  row.parts.strip.setAttribute('aria-label', text);
  row.parts.strip.title = text;
}

// The fewest moves that bring the rows into order: those that already are, stay, and keep the focus.
function arrange(container, wanted) {
  const places = new Map();
  [...container.children].forEach((child, n) => places.set(child, n));
  const keep = new Set(rising(wanted.map(child => places.has(child) ? places.get(child) : -1)).map(n => wanted[n]));
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
// Where the longest rising sequence is, leaving out what is below zero.
function rising(numbers) {
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
  const visible = wish.all ? drawn : drawn.slice(0, MOST_DRAWN);
  for (const row of visible) {
    if (!row.el) build(row);
    if (row.dirty) paint(row); else paintAges(row);
    if (row.stripDirty) paintStrip(row);
  }
  const container = at('rows'), elements = visible.map(row => row.el);
  if (elements.length !== container.children.length || elements.some((el, n) => container.children[n] !== el)) arrange(container, elements);
  drawHead();
  drawMarks();
  put(at('count'), drawn.length === rows.size ? '(' + rows.size + ')' : '(' + drawn.length + ' of ' + rows.size + ')');
  const none = at('nobody');
  none.hidden = drawn.length > 0 || !everRead;
  put(none, rows.size ? 'No worker passes the filter.' : 'There are no workers.');
  const more = at('more');
  more.hidden = visible.length === drawn.length;
  put(more, 'Show ' + (drawn.length - visible.length) + ' more');
  // For whoever measures the page.
  window.drawTook = performance.now() - begun;
}

// --- details ---------------------------------------------------------------------------------------

function toggle(row) {
  if (open.delete(row.id)) {
    row.parts.open.setAttribute('aria-expanded', 'false');
    if (row.more) row.more.remove();
    row.more = null;
  } else {
    open.add(row.id);
    expand(row);
  }
}
function expand(row) {
  row.parts.open.setAttribute('aria-expanded', 'true');
  row.more = make('div', 'more');
  row.more.setAttribute('role', 'row');
  const cell = make('div');
  cell.setAttribute('role', 'cell');
  row.more.append(cell);
  row.list = make('dl');
  row.list.append(make('dt', '', 'Details'), make('dd', '', 'asked for …'));
  cell.append(row.list);
  row.stack = null;
  row.el.append(row.more);
  inform(row);
}
async function ask(path, asked) {
  const answer = await fetch(path + '?' + new URLSearchParams(asked), { cache: 'no-store' });
  const text = await answer.text();
  if (answer.ok) return text;
  let error = 'status ' + answer.status;
  try { error = JSON.parse(text).error || error; } catch { /* it is told by its number */ }
  throw new Error(error);
}
async function inform(row) {
  row.informed = performance.now();
  try {
    const told = JSON.parse(await ask('/v1/worker/details', { view: wish.view, worker: row.id }));
    if (row.more) describe(row, told);
  } catch (error) {
    if (row.more) list(row, [['Details', 'cannot be had: ' + error.message]]);
  }
}
function describe(row, told) {
  const entries = [];
  const death = told.last_death;
  const health = told.health || {};
  entries.push(['State', words(row.state) + (row.reason ? ': ' + row.reason : '') + (shown ? '' : ' (reasons are withheld)')]);
  if (told.ending) entries.push(['Ended', (told.ending.stopped ? 'stopped: ' : 'died: ') + told.ending.cause + (told.ending.detail ? ': ' + told.ending.detail : '')]);
  if (death) entries.push(['Died before', death.reason + ', ' + new Date(death.at * 1000).toLocaleString() + (death.run_id ? ', during ' + death.run_id : '') + (death.task ? ' (' + death.task + ')' : '')]);
  if (told.task != null) entries.push(['Task', told.task]);
  entries.push(['Group', told.group], ['Incarnation', told.incarnation + (told.restarts ? ', after ' + told.restarts + (told.restarts === 1 ? ' restart' : ' restarts') : '')]);
  const limits = told.thresholds;
  if (limits) entries.push(['Limits', 'stale after ' + age(limits.stale_after_s) + (limits.stall_after_s == null ? '; no limit for stalls' : '; stalled after ' + age(limits.stall_after_s)) + '; to start within ' + age(limits.startup_grace_s) + (limits.beats_only ? '; by its own beats only' : '')]);
  entries.push(['Beats', told.beats + (told.late_beats ? ', ' + told.late_beats + ' after its end' : '')]);
  if (told.process) entries.push(['Process', told.process.pid + ' on ' + told.process.hostname]);
  if (told.store) entries.push(['Store', told.store.failures_in_a_row ? 'fails: ' + (told.store.last_error || '') : 'answers']);
  for (const [name, value] of Object.entries(told.metadata || {})) entries.push([name, value]);
  list(row, entries);
  const panicked = text => (text || '').startsWith('panicked');
  const own = row.state === 'dead' && panicked(health.reason), before = death && panicked(death.reason);
  // Of each death its own: another one while this is open has another call stack.
  const which = own ? told.incarnation + ' ' + told.restarts : before ? 'before ' + death.at : '';
  if (row.stack && row.stack.dataset.which !== which) { row.stack.remove(); row.stack = null; }
  if (shown && wish.view === 'process' && which && !row.stack) {
    row.stack = stack({ worker: row.id });
    row.stack.dataset.which = which;
    row.list.after(row.stack);
  }
}
function list(row, entries) {
  row.list.replaceChildren(...entries.flatMap(([name, value]) => {
    const dt = make('dt'), dd = make('dd');
    dt.append(make('bdi', '', name));
    dd.append(make('bdi', '', value));
    return [dt, dd];
  }));
}
// A call stack, folded. It is asked for when it is unfolded: to resolve it takes a while.
function stack(asked) {
  const fold = make('details', 'stack'), summary = make('summary', '', 'Call stack'), text = make('pre', '', 'being resolved …');
  text.tabIndex = 0;
  fold.append(summary, text);
  fold.addEventListener('toggle', async () => {
    if (!fold.open || fold.dataset.asked) return;
    fold.dataset.asked = 'yes';
    try {
      text.textContent = plain(await ask('/v1/worker/death', asked));
    } catch (error) {
      delete fold.dataset.asked;
      text.textContent = plain('cannot be had: ' + error.message);
    }
  });
  return fold;
}

// --- the head: summary, tiles, chips ---------------------------------------------------------------

function keyed(container, items, create, update) {
  const before = new Map([...container.children].map(child => [child.dataset.key, child]));
  arrange(container, items.map(item => {
    let child = before.get(item.key);
    if (!child) { child = create(item); child.dataset.key = item.key; }
    const now = JSON.stringify(item);
    if (child.seen !== now) { child.seen = now; update(child, item); }
    return child;
  }));
}
function phrase(states) {
  return worstFirst.filter(state => states[state]).map(state => states[state] + ' ' + words(state)).join(', ');
}
function drawHead() {
  if (!head || head.total === undefined) return;
  const wrong = [...BAD].reduce((sum, state) => sum + (head.states[state] || 0), 0);
  const missing = (head.missing || []).length + (head.missing_count || 0);
  const total = head.total + (head.total === 1 ? ' worker' : ' workers');
  const worst = worstFirst.find(state => head.states[state]);
  at('worst').hidden = !worst;
  if (worst) badge(at('worst'), worst);
  let text = wrong ? wrong + ' of ' + total + (wrong === 1 ? ' needs' : ' need') + ' attention: ' + phrase(Object.fromEntries(Object.entries(head.states).filter(([state]) => BAD.has(state))))
    : head.total ? (head.total === 1 ? 'The only worker is well' : 'All ' + total + ' are well') : 'There are no workers';
  if (!wrong && (head.states.starting || head.states.stopped)) text = 'Nothing is wrong with ' + total;
  if (missing && !wrong) text = (head.total ? 'Of ' + total + ' none is unwell, but workers are missing' : 'Workers are missing');
  put(at('summary'), text);
  const title = (wrong + missing ? '(' + (wrong + missing) + ') ' : '') + 'Workers';
  if (document.title !== title) document.title = title;
  drawIcon(wrong + missing ? '#b42318' : '#2f9e5c');
  const notes = [phrase(head.states)];
  if (head.tick_age != null) notes.push('the pacemaker looked ' + age(head.tick_age) + ' ago');
  if (head.draining) notes.push('the process is shutting down');
  if (head.not_shown) notes.push(head.not_shown + ' more are not shown, those in the worst states are');
  put(at('observer'), notes.filter(Boolean).join(' · '));
  drawTiles(at('types'), head.types, 'type');
  drawTiles(at('groups'), head.groups, 'group');
  at('groups-section').hidden = wish.view !== 'fleet' && head.groups.length < 2;
  drawChips();
}
function drawTiles(container, tiles, kind) {
  const items = tiles.map(tile => ({ ...tile, key: tile.name, pressed: wish[kind] === tile.name }));
  keyed(container, items, item => {
    const child = make('li'), button = make('button');
    button.type = 'button';
    const name = make('span', 'name'), text = make('bdi'), total = make('span', 'total');
    name.append(text, total);
    button.append(name, make('span', 'counts'), make('span', 'bar'));
    button.addEventListener('click', () => { wish[kind] = wish[kind] === item.name ? null : item.name; wished(); });
    child.append(button);
    return child;
  }, (child, item) => {
    const button = child.firstChild;
    button.setAttribute('aria-pressed', String(item.pressed));
    say(button.querySelector('bdi'), item.name === '' ? '(no name)' : item.name);
    put(button.querySelector('.total'), String(item.total));
    put(button.querySelector('.counts'), (item.state ? item.state + ': ' : '') + phrase(item.states));
    button.classList.toggle('bad', [...BAD].some(state => item.states[state]) || item.state === 'offline');
    const stops = [];
    let from = 0;
    for (const state of worstFirst) {
      if (!item.states[state]) continue;
      const to = from + item.states[state] / item.total * 100;
      stops.push('var(--' + state + ') ' + from.toFixed(2) + '% ' + to.toFixed(2) + '%');
      from = to;
    }
    button.querySelector('.bar').style.backgroundImage = stops.length ? 'linear-gradient(to right,' + stops.join() + ')' : 'none';
  });
}
function drawChips() {
  const present = worstFirst.filter(state => head.states[state] || wish.states.has(state));
  const bad = [...BAD].join(), wrong = [...BAD].reduce((sum, state) => sum + (head.states[state] || 0), 0);
  const attention = wish.states.size === BAD.size && [...BAD].every(state => wish.states.has(state));
  const items = [{ key: bad, text: 'need attention', count: wrong, pressed: attention }];
  for (const state of present) items.push({ key: state, text: words(state), count: head.states[state] || 0, pressed: !attention && wish.states.has(state) });
  keyed(at('states'), items, item => {
    const button = make('button');
    button.type = 'button';
    button.addEventListener('click', () => {
      const states = item.key.split(','), on = button.getAttribute('aria-pressed') === 'true';
      if (states.length > 1) wish.states = new Set(on ? [] : states);
      else if (wish.states.size === BAD.size && BAD.has(item.key) && !on) wish.states = new Set(states);
      else if (!wish.states.delete(item.key)) wish.states.add(item.key);
      wished();
    });
    return button;
  }, (button, item) => {
    put(button, item.count + ' ' + item.text);
    button.setAttribute('aria-pressed', String(item.pressed));
  });
}
function drawMarks() {
  for (const header of document.querySelectorAll('[data-sort]')) {
    const sort = header.dataset.sort === wish.sort ? (wish.down ? 'descending' : 'ascending') : 'none';
    if (header.getAttribute('aria-sort') !== sort) header.setAttribute('aria-sort', sort);
  }
  for (const button of document.querySelectorAll('[data-view]')) button.setAttribute('aria-pressed', String(button.dataset.view === wish.view));
  at('clear').hidden = !(wish.q || wish.states.size || wish.type !== null || wish.group !== null);
}
let icon = '';
function drawIcon(colour) {
  if (icon === colour) return;
  icon = colour;
  at('icon').href = 'data:image/svg+xml,' + encodeURIComponent('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="' + colour + '"/></svg>');
}

// --- events ----------------------------------------------------------------------------------------

const logged = new Set();
let unsaid = [], lastNews = '', saying = null;
function log(news) {
  lastNews = news.id;
  if (logged.has(news.id)) return;
  logged.add(news.id);
  const item = make('li', ['error', 'warn', 'info'].includes(news.level) ? news.level : '');
  const when = make('time', '', new Date(news.at).toLocaleTimeString([], { hour12: false }));
  when.dateTime = new Date(news.at).toISOString();
  item.append(when, make('span', 'level', news.level));
  if (news.worker != null) {
    const worker = make('button');
    worker.type = 'button';
    worker.title = 'Show this worker only';
    worker.append(make('bdi', '', news.worker));
    worker.addEventListener('click', () => { Object.assign(wish, { q: news.worker, type: null, group: null, states: new Set() }); at('filter').value = news.worker; wished(); });
    item.append(worker);
  }
  item.append(make('bdi', 'what', news.text));
  if (news.died && shown && /panicked/.test(news.text)) item.append(stack({ worker: news.worker, incarnation: news.incarnation }));
  item.dataset.id = news.id;
  at('log').prepend(item);
  while (at('log').children.length > MOST_LOGGED) { logged.delete(at('log').lastChild.dataset.id); at('log').lastChild.remove(); }
  at('quiet').hidden = true;
  // Not every word of the past, and no flood: a screen reader is told the last one, and how many.
  if (Date.now() - news.at < 10000 && news.level !== 'debug') {
    unsaid.push((news.worker == null ? '' : plain(news.worker) + ': ') + plain(news.text));
    if (saying === null) saying = setTimeout(announce, 300);
  }
}
function announce() {
  if (!unsaid.length) { saying = null; return; }
  const others = unsaid.length - 1;
  put(at('announcer'), unsaid[others] + (others ? ', and ' + others + ' more' : ''));
  unsaid = [];
  saying = setTimeout(announce, QUIET_BETWEEN_NEWS);
}
function clearLog() {
  logged.clear();
  lastNews = '';
  at('log').replaceChildren();
  at('quiet').hidden = false;
}

// --- the connection --------------------------------------------------------------------------------

let source = null, again = null, cutSince = null;
function connect() {
  if (source) source.close();
  clearTimeout(again);
  const asked = new URLSearchParams({ view: wish.view });
  if (lastNews) asked.set('after', lastNews);
  const mine = source = new EventSource('/v1/events?' + asked);
  mine.addEventListener('rows', event => { if (mine === source) takeIn(JSON.parse(event.data)); });
  mine.addEventListener('news', event => { if (mine === source) log(JSON.parse(event.data)); });
  mine.addEventListener('error', () => {
    if (mine !== source) return;
    cut();
    // It comes again by itself, but for an answer that is not a stream, such as "too many".
    if (mine.readyState === EventSource.CLOSED) again = setTimeout(connect, 5000);
  });
}
function cut() {
  if (cutSince === null) cutSince = heard || performance.now();
  drawLink();
}
function drawLink() {
  const now = performance.now(), silent = (now - heard) / 1000;
  const patience = Math.max(6, 3 * ((head && head.period) || 1));
  const alive = source && source.readyState === EventSource.OPEN && heard && silent < patience;
  if (alive) cutSince = null; else if (cutSince === null && heard) cutSince = heard;
  document.body.classList.toggle('waiting', !heard);
  document.body.classList.toggle('cut', cutSince !== null);
  if (!heard) put(at('link-text'), cutSince === null ? 'Connecting …' : 'No connection');
  else if (cutSince === null) put(at('link-text'), wish.view === 'fleet' && head && head.store && head.store.error ? 'Live, but the store cannot be read' : 'Live');
  else put(at('link-text'), 'Disconnected');
  const warnings = [];
  if (cutSince !== null) {
    warnings.push(heard
      ? 'Disconnected for ' + age((now - cutSince) / 1000) + '. What is shown is how it was at ' + new Date(Date.now() - (now - heard)).toLocaleTimeString([], { hour12: false }) + ', not how it is. Trying again …'
      : 'There is no connection to the server. Trying again …');
  }
  let old = false;
  const store = head && wish.view === 'fleet' ? head.store : null;
  if (store && store.error) {
    old = true;
    warnings.push('The store cannot be read: ' + plain(store.error) + '. ' + (store.read == null ? 'It was never read.' : 'What is shown is ' + age(time() - store.read) + ' old.'));
  }
  document.body.classList.toggle('old', old);
  for (const text of (head && head.missing) || []) warnings.push(plain(text));
  if (head && head.missing_count) warnings.push('Workers of ' + head.missing_count + (head.missing_count === 1 ? ' type' : ' types') + ' are missing.');
  const items = warnings.map((text, n) => ({ key: String(n), text }));
  keyed(at('warnings'), items, () => make('p', 'warning'), (child, item) => put(child, item.text));
}

// --- what is done ----------------------------------------------------------------------------------

function changeView() {
  heard = 0;
  head = null;
  everRead = false;
  cutSince = null;
  open.clear();
  forgetAll();
  clearLog();
  order(true);
  for (const id of ['types', 'groups']) at(id).replaceChildren();
  put(at('summary'), 'Waiting for the first reading …');
  at('worst').hidden = true;
  connect();
  drawLink();
  draw();
}
at('filter').addEventListener('input', () => { wish.q = at('filter').value; wished(); });
at('clear').addEventListener('click', () => { Object.assign(wish, { q: '', type: null, group: null, states: new Set() }); at('filter').value = ''; wished(); at('filter').focus(); });
at('more').addEventListener('click', () => { wish.all = true; draw(); });
for (const header of document.querySelectorAll('[data-sort]')) {
  header.firstElementChild.addEventListener('click', () => {
    const sort = header.dataset.sort;
    wish.down = wish.sort === sort ? !wish.down : ['heartbeat', 'progress', 'restarts'].includes(sort);
    wish.sort = sort;
    wished();
  });
}
for (const button of document.querySelectorAll('[data-view]')) {
  button.addEventListener('click', () => {
    if (wish.view === button.dataset.view) return;
    Object.assign(wish, { view: button.dataset.view, type: null, group: null });
    writeAddress();
    changeView();
  });
}
window.addEventListener('hashchange', () => {
  // A jump within the page, such as of the skip links, is no filter.
  if (/^#[a-z]+$/.test(location.hash)) return;
  if (readAddress()) changeView(); else refilter();
});
// A page that nobody sees takes no stream.
document.addEventListener('visibilitychange', () => {
  if (document.hidden && source) { source.close(); source = null; clearTimeout(again); }
  else if (!document.hidden && !source) connect();
});
for (const name of ['workers', 'events']) {
  at('skip-' + name).addEventListener('click', event => { event.preventDefault(); at(name).focus(); at(name).scrollIntoView(); });
}
setInterval(() => {
  drawLink();
  for (const row of drawn) if (row.el && row.parts) paintAges(row);
  for (const row of rows.values()) if (row.more && performance.now() - row.informed > DETAILS_EVERY * 1000 && cutSince === null) inform(row);
}, 1000);
at('views').hidden = document.body.dataset.fleet !== 'yes';
readAddress();
connect();
})();
