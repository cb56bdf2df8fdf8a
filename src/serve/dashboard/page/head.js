// The summary, the tiles of types and groups, and the filter buttons.
function keyed(container, items, create, update) {
  const before = new Map([...container.children].map(child => [child.dataset.key, child]));
  arrange(container, items.map(item => {
    let child = before.get(item.key);
    if (!child) { child = create(item); child.dataset.key = item.key; }
    const now = JSON.stringify(item);
    if (child.drawnItem !== now) { child.drawnItem = now; update(child, item); }
    return child;
  }));
}
function phrase(states) {
  return worstFirst.filter(state => states[state]).map(state => states[state].toLocaleString('en') + ' ' + stateName(state)).join(', ');
}
const unhealthyCount = () => [...UNHEALTHY].reduce((sum, state) => sum + (head.states[state] || 0), 0);
function drawHead() {
  drawServer();
  if (!hasReading) return;
  const unhealthy = unhealthyCount();
  const missing = (head.missing || []).length + (head.missing_count || 0);
  const total = count(head.total, 'worker');
  const worst = worstFirst.find(state => head.states[state]);
  at('worst').hidden = !worst;
  if (worst) badge(at('worst'), worst);
  let text = unhealthy ? unhealthy.toLocaleString('en') + ' of ' + total + (unhealthy === 1 ? ' needs' : ' need') + ' attention: ' + phrase(Object.fromEntries(Object.entries(head.states).filter(([state]) => UNHEALTHY.has(state))))
    : head.total ? (head.total === 1 ? 'The only worker is healthy' : 'All ' + total + ' are healthy') : 'There are no workers';
  if (!unhealthy && (head.states.starting || head.states.stopped)) text = 'No problems among ' + total;
  if (missing && !unhealthy) text = (head.total ? 'Workers are missing; the other ' + total + (head.total === 1 ? ' has' : ' have') + ' no problems' : 'Workers are missing');
  put(at('summary'), text);
  const host = server && server.host ? ' · ' + plain(server.host) : '';
  const title = (unhealthy + missing ? '(' + (unhealthy + missing) + ') ' : '') + (settings.view === 'fleet' ? 'Fleet' : 'Workers') + host;
  if (document.title !== title) document.title = title;
  drawIcon(unhealthy + missing ? '#b42318' : '#2f9e5c');
  const notes = [phrase(head.states)];
  if (head.tick_age != null) notes.push('last pacemaker tick ' + age(head.tick_age) + ' ago');
  if (head.draining) notes.push('the process is shutting down');
  put(at('observer'), notes.filter(Boolean).join(' · '));
  const advice = worstFirst.filter(state => UNHEALTHY.has(state) && head.states[state]).map(state => ({ key: state, count: head.states[state] }));
  keyed(at('advice'), advice, item => {
    const line = make('li'), sign = make('span');
    badge(sign, item.key);
    line.append(sign, make('span', '', ADVICE[item.key]));
    return line;
  }, () => {});
  drawTiles(at('types'), head.types, 'type');
  drawTiles(at('groups'), head.groups, 'group');
  putFold('types', head.types, head.types_total);
  putFold('groups', head.groups, head.groups_total);
  at('types-section').hidden = head.types.length === 0;
  at('groups-section').hidden = settings.view === 'fleet' ? head.groups.length === 0 : head.groups.length < 2;
  drawChips();
}
// Which process serves the page.
function drawServer() {
  put(at('title'), settings.view === 'fleet' ? 'Fleet' : 'Workers of this process');
  if (!server) return;
  const who = server.host ? (server.program || 'process') + ' (pid ' + server.pid + ') on ' + server.host + ', worker-heartbeat ' + server.version + ', ' : '';
  putPlain(at('server'), (settings.view === 'fleet' ? 'as seen by ' : '') + (who || 'this server, ') + 'since ' + timeText(server.since));
  at('server').title = absolute(server.since);
}
const isBadTile = tile => [...UNHEALTHY].some(state => tile.states[state]) || tile.state === 'offline';
function putFold(kind, tiles, total) {
  const bad = tiles.filter(isBadTile).length;
  put(at(kind + '-title'), kind[0].toUpperCase() + kind.slice(1) + ' (' + (total > tiles.length ? 'the worst ' + tiles.length + ' of ' : '') + total + (bad ? ', ' + bad + ' with problems' : '') + ')');
}
function drawTiles(container, tiles, kind) {
  const items = tiles.map(tile => ({ ...tile, key: tile.name, pressed: settings[kind] === tile.name, bad: isBadTile(tile) }));
  items.sort((a, b) => b.bad - a.bad || collator.compare(a.name, b.name));
  keyed(container, items, item => {
    const child = make('li'), button = make('button');
    button.type = 'button';
    const name = make('span', 'name'), text = make('bdi'), total = make('span', 'total');
    name.append(text, total);
    button.append(name, make('span', 'counts'), make('span', 'bar'));
    button.addEventListener('click', () => applySettings({ [kind]: settings[kind] === item.name ? null : item.name }));
    child.append(button);
    return child;
  }, (child, item) => {
    const button = child.firstChild;
    button.setAttribute('aria-pressed', String(item.pressed));
    putMiddle(button.querySelector('bdi'), item.name === '' ? '(no name)' : item.name);
    put(button.querySelector('.total'), item.total.toLocaleString('en'));
    put(button.querySelector('.counts'), (item.state ? item.state + ': ' : '') + phrase(item.states));
    button.classList.toggle('bad', item.bad);
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
  const present = worstFirst.filter(state => head.states[state] || settings.states.has(state));
  const bad = [...UNHEALTHY].join(), unhealthy = unhealthyCount();
  const attention = settings.states.size === UNHEALTHY.size && [...UNHEALTHY].every(state => settings.states.has(state));
  const items = [{ key: bad, text: 'need attention', count: unhealthy, pressed: attention }];
  for (const state of present) items.push({ key: state, text: stateName(state), count: head.states[state] || 0, pressed: !attention && settings.states.has(state) });
  keyed(at('states'), items, item => {
    const button = make('button');
    button.type = 'button';
    button.addEventListener('click', () => {
      const states = item.key.split(','), on = button.getAttribute('aria-pressed') === 'true';
      if (states.length > 1) settings.states = new Set(on ? [] : states);
      else if (settings.states.size === UNHEALTHY.size && UNHEALTHY.has(item.key) && !on) settings.states = new Set(states);
      else if (!settings.states.delete(item.key)) settings.states.add(item.key);
      applySettings({});
    });
    return button;
  }, (button, item) => {
    put(button, item.count.toLocaleString('en') + ' ' + item.text);
    button.setAttribute('aria-pressed', String(item.pressed));
  });
}
function drawControls() {
  for (const header of document.querySelectorAll('[data-sort]')) {
    const sort = header.dataset.sort === settings.sort ? (settings.down ? 'descending' : 'ascending') : 'none';
    if (header.getAttribute('aria-sort') !== sort) header.setAttribute('aria-sort', sort);
  }
  for (const button of document.querySelectorAll('[data-view]')) button.setAttribute('aria-pressed', String(button.dataset.view === settings.view));
  at('clear').hidden = !isFiltered();
}
let icon = '';
function drawIcon(colour) {
  if (icon === colour) return;
  icon = colour;
  at('icon').href = 'data:image/svg+xml,' + encodeURIComponent('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="' + colour + '"/></svg>');
}
