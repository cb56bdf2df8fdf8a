// What is shown: the filter, the order, the view and the opened workers. All of it is in the address.

const settings = { q: '', states: new Set(), type: null, group: null, from: null, sort: 'state', down: false, view: hasFleet ? 'fleet' : 'process', level: 'info' };
// The ids of the opened workers.
const open = new Set();
const LEVELS = ['error', 'warn', 'info', 'debug'];
const since = value => value == null ? Infinity : -value;
const KEYS = {
  state: row => ranks[row.state],
  id: row => row.id, type: row => row.type, task: row => row.task || '', run: row => row.run || '',
  heartbeat: row => since(row.heartbeat), progress: row => since(row.progress), restarts: row => row.restarts,
};
const isFiltered = () => settings.q !== '' || settings.states.size > 0 || settings.type !== null || settings.group !== null;
// Returns whether the view is another one.
function readAddress() {
  const params = new URLSearchParams(location.hash.slice(1));
  settings.q = params.get('q') || '';
  settings.states = new Set((params.get('state') || '').split(',').filter(state => Object.hasOwn(SIGNS, state)));
  settings.type = params.get('type');
  settings.group = params.get('group');
  const from = params.get('from') || '', [state] = from.split('~', 1);
  settings.from = Object.hasOwn(SIGNS, state) ? [state, from.slice(state.length + 1)] : null;
  const sort = params.get('sort') || 'state';
  settings.down = sort.startsWith('-');
  settings.sort = Object.hasOwn(KEYS, sort.replace('-', '')) ? sort.replace('-', '') : 'state';
  settings.level = LEVELS.includes(params.get('level')) ? params.get('level') : 'info';
  const view = !hasFleet || params.get('view') === 'process' ? 'process' : 'fleet';
  const other = view !== settings.view;
  settings.view = view;
  open.clear();
  for (const id of params.getAll('worker')) open.add(id);
  if (at('filter').value !== settings.q) at('filter').value = settings.q;
  at('level').value = at('log').dataset.level = settings.level;
  return other;
}
// The part of the filter that the server understands.
function filterParams() {
  const params = new URLSearchParams();
  if (settings.q) params.set('q', settings.q);
  if (settings.states.size) params.set('state', [...settings.states].join(','));
  if (settings.type !== null) params.set('type', settings.type);
  if (settings.group !== null) params.set('group', settings.group);
  return params;
}
function writeAddress() {
  const params = filterParams();
  if (settings.from) params.set('from', settings.from.join('~'));
  if (settings.sort !== 'state' || settings.down) params.set('sort', (settings.down ? '-' : '') + settings.sort);
  if (hasFleet && settings.view !== 'fleet') params.set('view', settings.view);
  if (settings.level !== 'info') params.set('level', settings.level);
  for (const id of open) params.append('worker', id);
  const text = params.toString();
  history.replaceState(null, '', text ? '#' + text : location.pathname + location.search);
}
// After a change of the filter or the order.
function applySettings(change) {
  Object.assign(settings, { from: null }, change);
  if (at('filter').value !== settings.q) at('filter').value = settings.q;
  writeAddress();
  refilter();
}
function refilter() {
  for (const row of byId.values()) row.matches = matches(row);
  order(true);
  draw();
  selectWorkers();
}
