// The workers, and the filter and order of their rows.

let rows = new Map(), head = null, bucket = 0, buckets = 120, bucketSeconds = 5;
let worstFirst = Object.keys(SIGNS), letters = {}, ranks = {};
let lastMessage = 0, clock = 0, received = 0, hasReading = false;
const open = new Set();
// The fields that the filter searches.
const SEARCHED = ['state', 'id', 'type', 'group', 'task', 'run', 'reason'];
const serverTime = () => clock + (performance.now() - received) / 1000;

function receive(message) {
  lastMessage = performance.now();
  if (message.full) {
    worstFirst = message.worst_first;
    worstFirst.forEach((state, n) => { letters[String.fromCharCode(97 + n)] = state; ranks[state] = n; });
    buckets = message.buckets;
    bucketSeconds = message.bucket_seconds;
    clearRows();
  }
  clock = message.now;
  received = lastMessage;
  head = message.head;
  // Before the first reading the head is empty.
  hasReading = head.total !== undefined;
  const steps = message.full ? 0 : Math.min(buckets, message.bucket - bucket);
  bucket = message.bucket;
  let moved = message.full || (message.gone || []).length > 0;
  for (const change of message.rows) {
    let row = rows.get(change.k);
    if (!row) rows.set(change.k, row = { k: change.k, marks: '.'.repeat(buckets), mark: '.', el: null, isNew: true });
    Object.assign(row, change);
    row.dirty = true;
    if (change.strip) {
      row.marks = change.strip.replace(/(\d+)(\D)/g, (_, n, mark) => mark.repeat(n));
      row.mark = row.marks[buckets - 1];
      row.strip = null;
    }
    if (SEARCHED.some(name => name in change)) {
      row.text = [stateName(row.state), ...SEARCHED.map(name => row[name])].join('\n').toLowerCase();
      const before = row.matches;
      row.matches = matches(row);
      moved = moved || before !== row.matches;
    }
    moved = moved || settings.sort in change;
  }
  for (const key of message.gone || []) remove(key);
  for (const row of rows.values()) advance(row, steps, message.steady);
  order(moved);
  draw();
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
  for (const row of rows.values()) if (row.el) row.el.remove();
  rows = new Map();
}
function remove(key) {
  const row = rows.get(key);
  if (row && row.el) row.el.remove();
  rows.delete(key);
}

// --- filter and order, kept in the address ---------------------------------------------------------

const settings = { q: '', states: new Set(), type: null, group: null, sort: 'state', down: false, view: 'process', all: false };
function readAddress() {
  const params = new URLSearchParams(location.hash.slice(1));
  settings.q = params.get('q') || '';
  settings.states = new Set((params.get('state') || '').split(',').filter(state => state in SIGNS));
  settings.type = params.get('type');
  settings.group = params.get('group');
  const sort = params.get('sort') || 'state';
  settings.down = sort.startsWith('-');
  settings.sort = Object.hasOwn(KEYS, sort.replace('-', '')) ? sort.replace('-', '') : 'state';
  const view = params.get('view') === 'fleet' && document.body.dataset.fleet === 'yes' ? 'fleet' : 'process';
  const other = view !== settings.view;
  settings.view = view;
  if (at('filter').value !== settings.q) at('filter').value = settings.q;
  return other;
}
function writeAddress() {
  const params = new URLSearchParams();
  if (settings.q) params.set('q', settings.q);
  if (settings.states.size) params.set('state', [...settings.states].join(','));
  if (settings.type !== null) params.set('type', settings.type);
  if (settings.group !== null) params.set('group', settings.group);
  if (settings.sort !== 'state' || settings.down) params.set('sort', (settings.down ? '-' : '') + settings.sort);
  if (settings.view !== 'process') params.set('view', settings.view);
  const text = params.toString();
  history.replaceState(null, '', text ? '#' + text : location.pathname + location.search);
}
function applySettings() {
  writeAddress();
  refilter();
}
function refilter() {
  for (const row of rows.values()) row.matches = matches(row);
  order(true);
  draw();
}
function matches(row) {
  if (settings.states.size && !settings.states.has(row.state)) return false;
  if (settings.type !== null && row.type !== settings.type) return false;
  if (settings.group !== null && row.group !== settings.group) return false;
  return settings.q.toLowerCase().split(/\s+/).every(word => row.text.includes(word));
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
  const key = KEYS[settings.sort], sign = settings.down ? -1 : 1;
  const keyed = [];
  for (const row of rows.values()) if (row.matches) keyed.push([key(row), row]);
  const compare = typeof (keyed[0] || [0])[0] === 'string' ? (a, b) => collator.compare(a, b) : (a, b) => a < b ? -1 : a > b ? 1 : 0;
  keyed.sort((a, b) => sign * compare(a[0], b[0]) || collator.compare(a[1].id, b[1].id) || a[1].k - b[1].k);
  drawn = keyed.map(pair => pair[1]);
}
