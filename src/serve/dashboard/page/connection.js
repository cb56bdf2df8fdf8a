// The connection to the server, and the user actions.
// --- the connection --------------------------------------------------------------------------------

let source = null, reconnectTimer = null, disconnectedSince = null;
// Why the server refuses the stream; null if it does not answer.
let refusal = null;
function connect() {
  if (source) source.close();
  clearTimeout(reconnectTimer);
  shownSelection = wantedSelection();
  const params = new URLSearchParams(shownSelection);
  params.set('view', settings.view);
  if (lastEvent) params.set('after', lastEvent);
  const url = '/v1/events?' + params, opened = source = new EventSource(url);
  opened.addEventListener('open', () => { if (opened === source) refusal = null; });
  opened.addEventListener('rows', event => { if (opened === source) receive(JSON.parse(event.data)); });
  opened.addEventListener('news', event => { if (opened === source) addEvent(JSON.parse(event.data)); });
  opened.addEventListener('error', async () => {
    if (opened !== source) return;
    markDisconnected();
    refusal = null;
    // The browser reconnects by itself, except after a response that is not a stream, such as 503.
    if (opened.readyState !== EventSource.CLOSED) return;
    const asked = await whyRefused(url);
    if (opened !== source) return;
    refusal = asked;
    drawLink();
    reconnectTimer = setTimeout(connect, 5000);
  });
}
// A browser does not tell why it got no stream: the same request as a plain one does.
async function whyRefused(url) {
  const ended = new AbortController();
  try {
    const answer = await fetch(url, { cache: 'no-store', signal: ended.signal });
    const text = answer.ok ? null : await answer.text();
    ended.abort();
    if (text === null) return null;
    try { return JSON.parse(text).error || 'status ' + answer.status; } catch { return 'status ' + answer.status; }
  } catch {
    return null;
  }
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
  const store = head && settings.view === 'fleet' ? head.store : null;
  const fails = store && (store.error || store.silent);
  put(at('link-text'), disconnectedSince === null ? !lastMessage ? 'Connecting …' : !fails ? 'Live' : store.error ? 'Live, but the store cannot be read' : 'Live, but the store is slow'
    : refusal ? 'Refused' : lastMessage ? 'Disconnected' : 'No connection');
  const warnings = [];
  if (disconnectedSince !== null) {
    const why = refusal ? 'The server sends no updates: ' + plain(refusal) + '. ' : lastMessage ? 'Disconnected for ' + age((now - disconnectedSince) / 1000) + '. ' : 'No connection to the server. ';
    warnings.push(why + (lastMessage ? 'This page shows the state at ' + timeText(Date.now() - (now - lastMessage)) + '. ' : '') + (refusal ? 'Trying again every 5 s …' : 'Reconnecting …'));
  }
  if (fails) {
    warnings.push((store.error ? 'The store cannot be read: ' + plain(store.error) + '. ' : 'The store has not answered for ' + age(store.silent + serverTime() - clock) + '. ')
      + (store.read == null ? 'It was never read.' : 'This page is ' + age(serverTime() - store.read) + ' old.'));
  }
  const old = Boolean(fails);
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
  hasReading = isPartial = false;
  disconnectedSince = refusal = null;
  renew = true;
  for (const panel of panels.values()) panel.el.remove();
  panels.clear();
  clearRows();
  clearLog();
  for (const id of ['types', 'groups', 'advice']) at(id).replaceChildren();
  put(at('summary'), 'Waiting for the first reading …');
  at('worst').hidden = true;
  connect();
  drawLink();
  draw();
}
const noFilter = () => ({ q: '', type: null, group: null, states: new Set() });
at('filter').addEventListener('input', () => applySettings({ q: at('filter').value }));
at('clear').addEventListener('click', () => { applySettings(noFilter()); at('filter').focus(); });
at('again').addEventListener('click', () => { order(true); draw(); at('workers').focus({ preventScroll: true }); });
at('next').addEventListener('click', () => { applySettings({ from: head.next }); at('workers').scrollIntoView(); });
at('first').addEventListener('click', () => applySettings({ from: null }));
document.addEventListener('keydown', event => {
  const writes = event.target.closest('input, textarea, select');
  if (event.key === '/' && !writes && !event.ctrlKey && !event.altKey && !event.metaKey) {
    event.preventDefault();
    at('filter').focus();
    at('filter').select();
  } else if (event.key === 'Escape' && event.target === at('filter')) at('filter').blur();
});
for (const header of document.querySelectorAll('[data-sort]')) {
  header.firstElementChild.addEventListener('click', () => {
    const sort = header.dataset.sort;
    settings.down = settings.sort === sort ? !settings.down : ['heartbeat', 'progress', 'restarts'].includes(sort);
    settings.sort = sort;
    applySettings({ from: settings.from });
  });
}
for (const button of document.querySelectorAll('[data-view]')) {
  button.addEventListener('click', () => {
    if (settings.view === button.dataset.view) return;
    Object.assign(settings, { view: button.dataset.view, type: null, group: null, from: null });
    open.clear();
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
  for (const row of drawn) if (row.el) paintAges(row);
  for (const panel of panels.values()) if (performance.now() - panel.askedAt > DETAILS_INTERVAL * 1000 && disconnectedSince === null) loadDetails(panel);
  // Nobody reads any longer.
  if (movedCount && !isReading()) { order(false); draw(); }
}, 1000);
// On a narrow screen, the workers come first.
if (matchMedia('(max-width: 1080px)').matches) for (const fold of document.querySelectorAll('.fold')) fold.open = false;
at('views').hidden = !hasFleet;
readAddress();
connect();
