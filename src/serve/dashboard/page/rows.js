// The workers that the server sent, and the order of their rows.

let head = null, server = null, bucket = 0, buckets = 120, bucketSeconds = 5;
// By the key of the server, and by id. A row that is gone keeps its place while somebody reads.
let rows = new Map(), byId = new Map();
let worstFirst = Object.keys(SIGNS), letters = {}, ranks = {};
let lastMessage = 0, clock = 0, wall = 0, received = 0, hasReading = false;
// Whether there are more workers than the server sends at once: then the server has to search.
let isPartial = false;
// The fields that the filter searches.
const SEARCHED = ['state', 'id', 'type', 'group', 'task', 'run', 'reason'];
const serverTime = () => clock + (performance.now() - received) / 1000;
// A time of the server's clock in milliseconds since the Unix epoch.
const wallTime = time => wall - (clock - time) * 1000;

function receive(message) {
  lastMessage = performance.now();
  let before = null;
  if (message.full) {
    worstFirst = message.worst_first;
    worstFirst.forEach((state, n) => { letters[String.fromCharCode(97 + n)] = state; ranks[state] = n; });
    buckets = message.buckets;
    bucketSeconds = message.bucket_seconds;
    server = message.server;
    rows = new Map();
    before = byId;
    byId = new Map();
  }
  clock = message.now;
  wall = message.wall;
  received = lastMessage;
  head = message.head;
  // Before the first reading the head is empty.
  hasReading = head.total !== undefined;
  const steps = message.full ? 0 : Math.min(buckets, message.bucket - bucket);
  bucket = message.bucket;
  let moved = message.full || (message.gone || []).length > 0;
  for (const change of message.rows) {
    let row = rows.get(change.k);
    if (!row) {
      row = (before || byId).get(change.id) || { el: null, panel: null };
      Object.assign(row, { marks: '.'.repeat(buckets), mark: '.', isNew: true, gone: false });
      rows.set(change.k, row);
      byId.set(change.id, row);
      moved = true;
    }
    Object.assign(row, change);
    row.dirty = true;
    if (change.strip) {
      row.marks = change.strip.replace(/(\d+)(\D)/g, (_, n, mark) => mark.repeat(n));
      row.mark = row.marks[buckets - 1];
      row.strip = null;
    }
    if (SEARCHED.some(name => name in change)) {
      row.text = [stateName(row.state), ...SEARCHED.map(name => row[name])].join('\n').toLowerCase();
      const matched = row.matches;
      row.matches = matches(row);
      moved = moved || matched !== row.matches;
    }
    moved = moved || settings.sort in change;
  }
  for (const key of message.gone || []) {
    const row = rows.get(key);
    rows.delete(key);
    if (row && byId.get(row.id) === row) row.gone = row.dirty = true;
  }
  // Keys are those of one list only: a row that another list lacks is known by its id.
  if (before) for (const [id, row] of before) if (!byId.has(id)) { byId.set(id, row); row.gone = row.dirty = true; }
  for (const row of rows.values()) advance(row, steps, message.steady);
  if (moved) order(false);
  draw();
  drawLink();
  if (!hasReading) return;
  if (shownSelection === '') isPartial = Boolean(head.next);
  selectWorkers();
}
// Repeats what the server does: one mark for each bucket; the server sends the last one.
function advance(row, steps, steady) {
  if (row.isNew) { row.isNew = false; row.stripDirty = true; if (row.marks.endsWith('.')) row.marks = row.marks.slice(0, -1) + row.mark; return; }
  if (steps > 0) {
    const before = row.marks[buckets - 1];
    row.marks = (row.marks + (steady ? before : '.').repeat(steps - 1) + row.mark).slice(-buckets);
    row.stripDirty = true;
  } else if (row.marks[buckets - 1] !== row.mark) {
    row.marks = row.marks.slice(0, -1) + row.mark;
    row.stripDirty = true;
  }
}
function clearRows() {
  rows = new Map();
  byId = new Map();
  drawn = [];
  matching = movedCount = 0;
}
function matches(row) {
  if (settings.states.size && !settings.states.has(row.state)) return false;
  if (settings.type !== null && row.type !== settings.type) return false;
  if (settings.group !== null && row.group !== settings.group) return false;
  return settings.q.toLowerCase().split(/\s+/).every(word => row.text.includes(word));
}

// --- the order -------------------------------------------------------------------------------------

// The rows as they are drawn; how many match the filter; how many are not at the place of the order.
let drawn = [], matching = 0, movedCount = 0, renew = true, touched = -Infinity;
// Rows keep their places while the page is in use. A page that is not touched orders itself.
const isReading = () => performance.now() - touched < Number(document.body.dataset.hold) * 1000 || open.size > 0
  || at('rows').contains(document.activeElement) || !getSelection().isCollapsed;
for (const name of ['pointermove', 'pointerdown', 'keydown', 'wheel', 'touchmove']) {
  document.addEventListener(name, () => { touched = performance.now(); }, { passive: true });
}
function ordered() {
  const key = KEYS[settings.sort], sign = settings.down ? -1 : 1;
  const keyed = [];
  for (const row of rows.values()) if (row.matches) keyed.push([key(row), row]);
  const compare = typeof (keyed[0] || [0])[0] === 'string' ? (a, b) => collator.compare(a, b) : (a, b) => a < b ? -1 : a > b ? 1 : 0;
  keyed.sort((a, b) => sign * compare(a[0], b[0]) || collator.compare(a[1].id, b[1].id) || a[1].k - b[1].k);
  return keyed.map(pair => pair[1]);
}
// `asked`: the user asked for the order; otherwise, rows stay while somebody reads.
function order(asked) {
  const wanted = ordered();
  matching = wanted.length;
  if (asked || renew || !isReading()) {
    drawn = wanted;
    movedCount = 0;
    renew = renew && !hasReading;
    for (const [id, row] of byId) if (row.gone) byId.delete(id);
    return;
  }
  const known = new Set(drawn);
  drawn = drawn.filter(row => byId.get(row.id) === row);
  for (const row of wanted) if (!known.has(row)) drawn.push(row);
  const place = new Map(drawn.map((row, n) => [row, n]));
  const stay = longestIncreasing(wanted.map(row => place.get(row))).length;
  movedCount = drawn.length - stay;
}

// --- the server's selection ------------------------------------------------------------------------

// What the stream shows: empty, or the parameters of a filter or a page.
let shownSelection = '', selectTimer = null;
function wantedSelection() {
  if (!isPartial) return '';
  const params = filterParams();
  if (settings.from) { params.set('after_state', settings.from[0]); params.set('after_worker', settings.from[1]); }
  return params.toString();
}
// Asks the server for the selection, if it sends another one. While somebody types, it waits.
function selectWorkers() {
  clearTimeout(selectTimer);
  if (wantedSelection() === shownSelection) return;
  selectTimer = setTimeout(() => { renew = true; connect(); }, SEARCH_DELAY);
}
