// The details of a worker, with its call stack.
function toggle(row) {
  if (open.delete(row.id)) {
    row.parts.open.setAttribute('aria-expanded', 'false');
    if (row.panel) row.panel.remove();
    row.panel = null;
  } else {
    open.add(row.id);
    expand(row);
  }
}
function expand(row) {
  row.parts.open.setAttribute('aria-expanded', 'true');
  row.panel = make('div', 'more');
  row.panel.setAttribute('role', 'row');
  const cell = make('div');
  cell.setAttribute('role', 'cell');
  row.panel.append(cell);
  row.list = make('dl');
  row.list.append(make('dt', '', 'Details'), make('dd', '', 'loading …'));
  cell.append(row.list);
  row.stack = row.hung = null;
  row.el.append(row.panel);
  loadDetails(row);
}
async function request(path, params) {
  const answer = await fetch(path + '?' + new URLSearchParams(params), { cache: 'no-store' });
  const text = await answer.text();
  if (answer.ok) return text;
  let error = 'status ' + answer.status;
  try { error = JSON.parse(text).error || error; } catch { /* not JSON: the status has to suffice */ }
  throw new Error(error);
}
async function loadDetails(row) {
  row.detailsAt = performance.now();
  try {
    const details = JSON.parse(await request('/v1/worker/details', { view: settings.view, worker: row.id }));
    if (row.panel) showDetails(row, details);
  } catch (error) {
    if (row.panel) fillList(row, [['Details', 'not available: ' + error.message]]);
  }
}
function showDetails(row, details) {
  const entries = [];
  const death = details.last_death;
  const health = details.health || {};
  entries.push(['State', stateName(row.state) + (row.reason ? ': ' + row.reason : '') + (showsReasons ? '' : ' (reasons are not shown)')]);
  if (details.ending) entries.push(['Ended', (details.ending.stopped ? 'stopped: ' : 'died: ') + details.ending.cause + (details.ending.detail ? ': ' + details.ending.detail : '')]);
  if (death) entries.push(['Previous death', death.reason + ', ' + new Date(death.at * 1000).toLocaleString() + (death.run_id ? ', during ' + death.run_id : '') + (death.task ? ' (' + death.task + ')' : '')]);
  if (details.task != null) entries.push(['Task', details.task]);
  if (details.last_location) entries.push(['Last seen', details.last_location]);
  if (details.spawn_location) entries.push(['Started', details.spawn_location]);
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
  fillList(row, entries);
  showHung(row, hung.length > 1 ? hung : []);
  const panicked = text => (text || '').startsWith('panicked');
  const own = row.state === 'dead' && panicked(health.reason), before = death && panicked(death.reason);
  // Each death has its own call stack: a new death replaces it.
  const which = own ? details.incarnation + ' ' + details.restarts : before ? 'before ' + death.at : '';
  if (row.stack && row.stack.dataset.which !== which) { row.stack.remove(); row.stack = null; }
  if (showsReasons && settings.view === 'process' && which && !row.stack) {
    row.stack = callStack({ worker: row.id });
    row.stack.dataset.which = which;
    row.list.after(row.stack);
  }
}
function polls(future) {
  if (!future.polls) return 'never polled';
  return future.polls.toLocaleString() + (future.polls === 1 ? ' poll' : ' polls') + (future.is_polled_now ? ', in a poll that began' : ', last polled')
    + (future.last_poll_age_s == null ? '' : ' ' + age(future.last_poll_age_s) + ' ago') + (future.last_poll_thread ? ' on ' + future.last_poll_thread : '');
}
function fillList(row, entries) {
  row.list.replaceChildren(...entries.flatMap(([name, value]) => {
    const dt = make('dt'), dd = make('dd');
    dt.append(make('bdi', '', name));
    dd.append(make('bdi', '', value));
    return [dt, dd];
  }));
}
// The call stack of an unwell worker, folded: the calls of the application, then all of them.
function showHung(row, lines) {
  const text = lines.join('\n');
  if (row.hung && row.hung.dataset.text === text) return;
  if (row.hung) row.hung.remove();
  row.hung = null;
  if (!text) return;
  const own = lines.filter(line => line.startsWith('>')).map(line => line.replace(/^>\s*\d+: /, ''));
  const fold = make('details', 'stack');
  fold.dataset.text = text;
  fold.append(make('summary', '', own.length ? 'Hangs at ' + own[0] : 'Call stack'));
  const all = make('details', 'stack'), calls = make('pre', '', text);
  calls.tabIndex = 0;
  all.append(make('summary', '', 'All calls'), calls);
  if (own.length) {
    const short = make('pre', '', own.join('\ncalled from '));
    short.tabIndex = 0;
    fold.append(short, all);
  } else fold.append(calls);
  row.hung = fold;
  row.list.after(fold);
}
// A folded call stack. It is requested when it is unfolded, because resolving it takes a while.
function callStack(params) {
  const fold = make('details', 'stack'), summary = make('summary', '', 'Call stack'), text = make('pre', '', 'being resolved …');
  text.tabIndex = 0;
  fold.append(summary, text);
  fold.addEventListener('toggle', async () => {
    if (!fold.open || fold.dataset.asked) return;
    fold.dataset.asked = 'yes';
    try {
      text.textContent = plain(await request('/v1/worker/death', params));
    } catch (error) {
      delete fold.dataset.asked;
      text.textContent = plain('not available: ' + error.message);
    }
  });
  return fold;
}
