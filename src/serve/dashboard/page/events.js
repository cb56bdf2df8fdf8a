// The events, the latest first.

const logged = new Set();
let unannounced = [], lastEvent = '', announceTimer = null;
function addEvent(entry) {
  lastEvent = entry.id;
  if (logged.has(entry.id)) return;
  logged.add(entry.id);
  const item = make('li', LEVELS.includes(entry.level) ? entry.level : 'debug');
  const when = make('time', '', timeText(entry.at));
  when.dateTime = new Date(entry.at).toISOString();
  when.title = absolute(entry.at);
  item.append(when, make('span', 'level', entry.level));
  if (entry.worker != null) {
    const worker = make('button');
    worker.type = 'button';
    worker.title = 'Open this worker';
    worker.append(make('bdi', '', entry.worker));
    worker.addEventListener('click', () => openWorker(entry.worker));
    item.append(worker);
  }
  item.append(make('bdi', 'what', entry.text));
  if (entry.died && showsReasons && /panicked/.test(entry.text)) item.append(callStack({ worker: entry.worker, incarnation: entry.incarnation }));
  item.dataset.id = entry.id;
  at('log').prepend(item);
  if (at('log').children.length > MAX_LOGGED) dropEvent();
  drawQuiet();
  // A screen reader gets only recent events, and at intervals: the last one, and the number of others.
  if (Date.now() - entry.at < 10000 && entry.level !== 'debug') {
    unannounced.push((entry.worker == null ? '' : plain(entry.worker) + ': ') + plain(entry.text));
    if (announceTimer === null) announceTimer = setTimeout(announce, 300);
  }
}
// Events that only help to find a fault go first.
function dropEvent() {
  const minor = at('log').querySelectorAll('.debug'), oldest = minor[minor.length - 1] || at('log').lastChild;
  logged.delete(oldest.dataset.id);
  oldest.remove();
}
function drawQuiet() {
  const all = at('log').children.length, shown = LEVELS.slice(0, LEVELS.indexOf(settings.level) + 1);
  const isEmpty = !shown.some(level => at('log').querySelector('.' + level));
  at('quiet').hidden = !isEmpty;
  put(at('quiet'), all ? 'No events of this level; ' + all + ' of lower levels.' : 'No events yet.');
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
  drawQuiet();
}
at('level').addEventListener('change', () => {
  settings.level = at('log').dataset.level = at('level').value;
  writeAddress();
  drawQuiet();
});
