// The details of the opened workers: within their rows, or above the table if the list lacks them.

// By id.
const panels = new Map();
function toggle(id) {
  if (!open.delete(id)) open.add(id);
  writeAddress();
  draw();
}
// Opens a worker, wherever it is in the list, and goes there.
function openWorker(id) {
  open.add(id);
  writeAddress();
  drawNow();
  const panel = panels.get(id), target = panel && (panel.el.closest('.worker') || panel.el);
  if (!target) return;
  target.scrollIntoView({ block: 'start' });
  target.querySelector('button').focus({ preventScroll: true });
}
function drawPanels() {
  for (const [id, panel] of panels) if (!open.has(id)) { panel.el.remove(); panels.delete(id); }
  const places = new Set();
  for (const row of drawn) {
    const isOpen = open.has(row.id);
    if (row.isOpen !== isOpen) row.parts.open.setAttribute('aria-expanded', String(row.isOpen = isOpen));
    if (!isOpen) continue;
    places.add(row.id);
    const panel = panels.get(row.id) || addPanel(row.id);
    if (panel.el.parentElement === row.el) continue;
    panel.close.hidden = true;
    panel.el.className = 'more';
    panel.el.setAttribute('role', 'row');
    panel.cell.setAttribute('role', 'cell');
    row.el.append(panel.el);
  }
  if (!hasReading) return;
  for (const id of open) {
    if (places.has(id)) continue;
    const panel = panels.get(id) || addPanel(id);
    if (panel.el.parentElement === at('pinned')) continue;
    panel.close.hidden = false;
    panel.el.className = 'more pinned';
    panel.el.removeAttribute('role');
    panel.cell.removeAttribute('role');
    at('pinned').append(panel.el);
  }
}
function addPanel(id) {
  const panel = { id, el: make('div'), cell: make('div'), list: make('dl'), close: make('button', 'close', 'Close'), stack: null, hung: null, askedAt: 0 };
  panel.close.type = 'button';
  panel.close.addEventListener('click', () => toggle(id));
  panel.list.append(make('dt', '', 'Details'), make('dd', '', 'loading …'));
  const tools = make('div', 'copies');
  tools.append(copyButton('Copy the id', () => id), copyButton('Copy a link', () => location.href.split('#')[0] + '#' + linkTo(id)),
    copyButton('Copy the details', () => plain(panel.list.innerText)), panel.close);
  panel.cell.append(tools, panel.list);
  panel.el.append(panel.cell);
  panels.set(id, panel);
  loadDetails(panel);
  return panel;
}
function linkTo(id) {
  const params = new URLSearchParams();
  if (hasFleet && settings.view !== 'fleet') params.set('view', settings.view);
  params.set('worker', id);
  return params;
}
async function request(path, params) {
  const answer = await fetch(path + '?' + new URLSearchParams(params), { cache: 'no-store' });
  const text = await answer.text();
  if (answer.ok) return text;
  let error = 'status ' + answer.status;
  try { error = JSON.parse(text).error || error; } catch { /* not JSON: the status has to suffice */ }
  throw new Error(error);
}
async function loadDetails(panel) {
  panel.askedAt = performance.now();
  const view = settings.view, isShown = () => panels.get(panel.id) === panel && settings.view === view;
  try {
    const details = JSON.parse(await request('/v1/worker/details', { view, worker: panel.id }));
    if (isShown()) showDetails(panel, details);
  } catch (error) {
    if (isShown()) fillList(panel, [['Id', panel.id], ['Details', 'not available: ' + error.message]]);
  }
}
function showDetails(panel, details) {
  const row = byId.get(panel.id) || { state: details.health.state, reason: details.health.reason, gone: false };
  const ago = seconds => wallTime(serverTime() - seconds);
  const entries = [];
  const death = details.last_death;
  const health = details.health || {};
  entries.push(['Id', panel.id]);
  entries.push(['State', stateName(row.state) + (row.reason ? ': ' + row.reason : '') + (showsReasons ? '' : ' (reasons are not shown)')]);
  if (UNHEALTHY.has(row.state)) entries.push(['What to do', ADVICE[row.state]]);
  if (row.ended != null) entries.push(['Ended at', absolute(wallTime(row.ended)) + (row.heard == null ? '' : '; last heard of at ' + absolute(wallTime(row.heard)))]);
  else if (details.ended_age_s != null) entries.push(['Ended at', absolute(ago(details.ended_age_s))]);
  const times = [['heartbeat', details.heartbeat_age_s], ['progress', details.progress_age_s]].filter(([, age]) => age != null);
  if (times.length) entries.push(['Last seen at', times.map(([name, age]) => name + ' ' + absolute(ago(age))).join('; ')]);
  if (details.ending && !row.reason) entries.push(['Ended', (details.ending.stopped ? 'stopped: ' : 'died: ') + details.ending.cause + (details.ending.detail ? ': ' + details.ending.detail : '')]);
  if (death) entries.push(['Previous death', death.reason + ', ' + absolute(death.at * 1000) + (death.run_id ? ', during ' + death.run_id : '') + (death.task ? ' (' + death.task + ')' : '')]);
  if (details.task != null) entries.push(['Task', details.task]);
  if (details.last_location) entries.push(['Last place', details.last_location]);
  if (details.spawn_location) entries.push(['Started at', details.spawn_location]);
  const future = details.future;
  if (future) entries.push(['Future', future.type_name + (future.location ? ', from ' + future.location : '') + '; ' + polls(future)]);
  entries.push(['Group', details.group], ['Incarnation', details.incarnation + (details.restarts ? ', after ' + details.restarts + (details.restarts === 1 ? ' restart' : ' restarts') : '')]);
  const limits = details.thresholds;
  if (limits) entries.push(['Limits', 'stale after ' + age(limits.stale_after_s) + (limits.stall_after_s == null ? '; no limit for stalls' : '; stalled after ' + age(limits.stall_after_s)) + (limits.progress_after_s == null ? '' : '; progress may stand still for ' + age(limits.progress_after_s)) + (limits.task_deadline_s == null ? '' : '; a task may take ' + age(limits.task_deadline_s)) + '; startup grace ' + age(limits.startup_grace_s) + (limits.beats_only ? '; beats only' : '')]);
  const learned = details.learned;
  const short = seconds => seconds < 10 ? +seconds.toPrecision(2) + ' s' : age(seconds);
  if (learned) entries.push(['Learned limit', (learned.is_learning ? 'learning: ' : 'usually ' + short(learned.usual_s) + ', ') + 'allowed ' + short(learned.allowed_s) + ', from ' + learned.silences + ' silences']);
  if (details.at_most_per_s != null) entries.push(['Rate', (details.racing_per_s == null ? '' : 'racing: ' + Math.round(details.racing_per_s) + ' steps a second; ') + 'at most ' + +details.at_most_per_s.toPrecision(3) + ' steps a second']);
  entries.push(['Beats', details.beats + (details.late_beats ? ', ' + details.late_beats + ' after its end' : '')]);
  if (details.process) entries.push(['Process', details.process.pid + ' on ' + details.process.hostname]);
  if (details.store) entries.push(['Store', details.store.failures_in_a_row ? 'failing: ' + (details.store.last_error || '') : 'reachable']);
  for (const [name, value] of Object.entries(details.metadata || {})) entries.push([name, value]);
  const hung = UNHEALTHY.has(row.state) && details.stack ? details.stack.split('\n') : [];
  if (hung.length === 1) entries.push(['Call stack', hung[0].replace('no call stack: ', 'none: ')]);
  fillList(panel, entries);
  showHung(panel, hung.length > 1 ? hung : []);
  const panicked = text => (text || '').startsWith('panicked');
  const own = row.state === 'dead' && panicked(health.reason), before = death && panicked(death.reason);
  // Each death has its own call stack: a new death replaces it.
  const which = own ? details.incarnation + ' ' + details.restarts : before ? 'before ' + death.at : '';
  if (panel.stack && panel.stack.dataset.which !== which) { panel.stack.remove(); panel.stack = null; }
  if (showsReasons && settings.view === 'process' && which && !panel.stack) {
    panel.stack = callStack({ worker: panel.id });
    panel.stack.dataset.which = which;
    panel.list.after(panel.stack);
  }
}
function polls(future) {
  if (!future.polls) return 'never polled';
  return future.polls.toLocaleString() + (future.polls === 1 ? ' poll' : ' polls') + (future.is_polled_now ? ', in a poll that began' : ', last polled')
    + (future.last_poll_age_s == null ? '' : ' ' + age(future.last_poll_age_s) + ' ago') + (future.last_poll_thread ? ' on ' + future.last_poll_thread : '');
}
// Texts that stay the same stay selected.
function fillList(panel, entries) {
  const names = JSON.stringify(entries.map(entry => entry[0]));
  if (panel.names !== names) {
    panel.names = names;
    panel.list.replaceChildren(...entries.flatMap(([name]) => {
      const dt = make('dt'), dd = make('dd');
      dt.append(make('bdi', '', name));
      dd.append(make('bdi'));
      return [dt, dd];
    }));
  }
  const values = panel.list.querySelectorAll('dd > bdi');
  entries.forEach(([, value], n) => put(values[n], plain(value)));
}
