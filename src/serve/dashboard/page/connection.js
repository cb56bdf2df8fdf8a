// The events, the connection to the server, and the user actions.
// --- events ----------------------------------------------------------------------------------------

const logged = new Set();
let unannounced = [], lastEvent = '', announceTimer = null;
function addEvent(entry) {
  lastEvent = entry.id;
  if (logged.has(entry.id)) return;
  logged.add(entry.id);
  const item = make('li', ['error', 'warn', 'info'].includes(entry.level) ? entry.level : '');
  const when = make('time', '', new Date(entry.at).toLocaleTimeString([], { hour12: false }));
  when.dateTime = new Date(entry.at).toISOString();
  item.append(when, make('span', 'level', entry.level));
  if (entry.worker != null) {
    const worker = make('button');
    worker.type = 'button';
    worker.title = 'Show this worker only';
    worker.append(make('bdi', '', entry.worker));
    worker.addEventListener('click', () => { Object.assign(settings, { q: entry.worker, type: null, group: null, states: new Set() }); at('filter').value = entry.worker; applySettings(); });
    item.append(worker);
  }
  item.append(make('bdi', 'what', entry.text));
  if (entry.died && showsReasons && /panicked/.test(entry.text)) item.append(callStack({ worker: entry.worker, incarnation: entry.incarnation }));
  item.dataset.id = entry.id;
  at('log').prepend(item);
  while (at('log').children.length > MAX_LOGGED) { logged.delete(at('log').lastChild.dataset.id); at('log').lastChild.remove(); }
  at('quiet').hidden = true;
  // A screen reader gets only recent events, and at intervals: the last one, and the number of others.
  if (Date.now() - entry.at < 10000 && entry.level !== 'debug') {
    unannounced.push((entry.worker == null ? '' : plain(entry.worker) + ': ') + plain(entry.text));
    if (announceTimer === null) announceTimer = setTimeout(announce, 300);
  }
}
function announce() {
  if (!unannounced.length) { announceTimer = null; return; }
  const others = unannounced.length - 1;
  put(at('announcer'), unannounced[others] + (others ? ', and ' + others + ' more' : ''));
  unannounced = [];
  announceTimer = setTimeout(announce, ANNOUNCE_INTERVAL);
}
function clearLog() {
  logged.clear();
  lastEvent = '';
  at('log').replaceChildren();
  at('quiet').hidden = false;
}

// --- the connection --------------------------------------------------------------------------------

let source = null, reconnectTimer = null, disconnectedSince = null;
function connect() {
  if (source) source.close();
  clearTimeout(reconnectTimer);
  const params = new URLSearchParams({ view: settings.view });
  if (lastEvent) params.set('after', lastEvent);
  const opened = source = new EventSource('/v1/events?' + params);
  opened.addEventListener('rows', event => { if (opened === source) receive(JSON.parse(event.data)); });
  opened.addEventListener('news', event => { if (opened === source) addEvent(JSON.parse(event.data)); });
  opened.addEventListener('error', () => {
    if (opened !== source) return;
    markDisconnected();
    // The browser reconnects by itself, except after a response that is not a stream, such as 503.
    if (opened.readyState === EventSource.CLOSED) reconnectTimer = setTimeout(connect, 5000);
  });
}
function markDisconnected() {
  if (disconnectedSince === null) disconnectedSince = lastMessage || performance.now();
  drawLink();
}
function drawLink() {
  const now = performance.now(), silent = (now - lastMessage) / 1000;
  const patience = Math.max(6, 3 * ((head && head.period) || 1));
  const alive = source && source.readyState === EventSource.OPEN && lastMessage && silent < patience;
  if (alive) disconnectedSince = null; else if (disconnectedSince === null && lastMessage) disconnectedSince = lastMessage;
  document.body.classList.toggle('waiting', !lastMessage);
  document.body.classList.toggle('cut', disconnectedSince !== null);
  if (!lastMessage) put(at('link-text'), disconnectedSince === null ? 'Connecting …' : 'No connection');
  else if (disconnectedSince === null) put(at('link-text'), settings.view === 'fleet' && head && head.store && head.store.error ? 'Live, but the store cannot be read' : 'Live');
  else put(at('link-text'), 'Disconnected');
  const warnings = [];
  if (disconnectedSince !== null) {
    warnings.push(lastMessage
      ? 'Disconnected for ' + age((now - disconnectedSince) / 1000) + '. This page shows the state at ' + new Date(Date.now() - (now - lastMessage)).toLocaleTimeString([], { hour12: false }) + '. Reconnecting …'
      : 'No connection to the server. Reconnecting …');
  }
  let old = false;
  const store = head && settings.view === 'fleet' ? head.store : null;
  if (store && store.error) {
    old = true;
    warnings.push('The store cannot be read: ' + plain(store.error) + '. ' + (store.read == null ? 'It was never read.' : 'This page is ' + age(serverTime() - store.read) + ' old.'));
  }
  document.body.classList.toggle('old', old);
  for (const text of (head && head.missing) || []) warnings.push(plain(text));
  if (head && head.missing_count) warnings.push('Workers of ' + head.missing_count + (head.missing_count === 1 ? ' type' : ' types') + ' are missing.');
  const items = warnings.map((text, n) => ({ key: String(n), text }));
  keyed(at('warnings'), items, () => make('p', 'warning'), (child, item) => put(child, item.text));
}

// --- user actions ----------------------------------------------------------------------------------

function changeView() {
  lastMessage = 0;
  head = null;
  hasReading = false;
  disconnectedSince = null;
  open.clear();
  clearRows();
  clearLog();
  order(true);
  for (const id of ['types', 'groups']) at(id).replaceChildren();
  put(at('summary'), 'Waiting for the first reading …');
  at('worst').hidden = true;
  connect();
  drawLink();
  draw();
}
at('filter').addEventListener('input', () => { settings.q = at('filter').value; applySettings(); });
at('clear').addEventListener('click', () => { Object.assign(settings, { q: '', type: null, group: null, states: new Set() }); at('filter').value = ''; applySettings(); at('filter').focus(); });
at('more').addEventListener('click', () => { settings.all = true; draw(); });
for (const header of document.querySelectorAll('[data-sort]')) {
  header.firstElementChild.addEventListener('click', () => {
    const sort = header.dataset.sort;
    settings.down = settings.sort === sort ? !settings.down : ['heartbeat', 'progress', 'restarts'].includes(sort);
    settings.sort = sort;
    applySettings();
  });
}
for (const button of document.querySelectorAll('[data-view]')) {
  button.addEventListener('click', () => {
    if (settings.view === button.dataset.view) return;
    Object.assign(settings, { view: button.dataset.view, type: null, group: null });
    writeAddress();
    changeView();
  });
}
window.addEventListener('hashchange', () => {
  // The fragment of a link within the page, such as a skip link, is not a filter.
  if (/^#[a-z]+$/.test(location.hash)) return;
  if (readAddress()) changeView(); else refilter();
});
// A hidden page closes its stream.
document.addEventListener('visibilitychange', () => {
  if (document.hidden && source) { source.close(); source = null; clearTimeout(reconnectTimer); }
  else if (!document.hidden && !source) connect();
});
for (const name of ['workers', 'events']) {
  at('skip-' + name).addEventListener('click', event => { event.preventDefault(); at(name).focus(); at(name).scrollIntoView(); });
}
setInterval(() => {
  drawLink();
  for (const row of drawn) if (row.el && row.parts) paintAges(row);
  for (const row of rows.values()) if (row.panel && performance.now() - row.detailsAt > DETAILS_INTERVAL * 1000 && disconnectedSince === null) loadDetails(row);
}, 1000);
at('views').hidden = document.body.dataset.fleet !== 'yes';
readAddress();
connect();
