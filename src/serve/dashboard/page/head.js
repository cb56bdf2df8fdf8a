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
  return worstFirst.filter(state => states[state]).map(state => states[state] + ' ' + stateName(state)).join(', ');
}
const unhealthyCount = () => [...UNHEALTHY].reduce((sum, state) => sum + (head.states[state] || 0), 0);
function drawHead() {
  if (!head || head.total === undefined) return;
  const unhealthy = unhealthyCount();
  const missing = (head.missing || []).length + (head.missing_count || 0);
  const total = head.total + (head.total === 1 ? ' worker' : ' workers');
  const worst = worstFirst.find(state => head.states[state]);
  at('worst').hidden = !worst;
  if (worst) badge(at('worst'), worst);
  let text = unhealthy ? unhealthy + ' of ' + total + (unhealthy === 1 ? ' needs' : ' need') + ' attention: ' + phrase(Object.fromEntries(Object.entries(head.states).filter(([state]) => UNHEALTHY.has(state))))
    : head.total ? (head.total === 1 ? 'The only worker is healthy' : 'All ' + total + ' are healthy') : 'There are no workers';
  if (!unhealthy && (head.states.starting || head.states.stopped)) text = 'No problems among ' + total;
  if (missing && !unhealthy) text = (head.total ? 'Workers are missing; the other ' + total + (head.total === 1 ? ' has' : ' have') + ' no problems' : 'Workers are missing');
  put(at('summary'), text);
  const title = (unhealthy + missing ? '(' + (unhealthy + missing) + ') ' : '') + 'Workers';
  if (document.title !== title) document.title = title;
  drawIcon(unhealthy + missing ? '#b42318' : '#2f9e5c');
  const notes = [phrase(head.states)];
  if (head.tick_age != null) notes.push('last pacemaker tick ' + age(head.tick_age) + ' ago');
  if (head.draining) notes.push('the process is shutting down');
  if (head.not_shown) notes.push(head.not_shown + ' more are not shown; the shown ones have the worst states');
  put(at('observer'), notes.filter(Boolean).join(' · '));
  drawTiles(at('types'), head.types, 'type');
  drawTiles(at('groups'), head.groups, 'group');
  at('groups-section').hidden = settings.view !== 'fleet' && head.groups.length < 2;
  drawChips();
}
function drawTiles(container, tiles, kind) {
  const items = tiles.map(tile => ({ ...tile, key: tile.name, pressed: settings[kind] === tile.name }));
  keyed(container, items, item => {
    const child = make('li'), button = make('button');
    button.type = 'button';
    const name = make('span', 'name'), text = make('bdi'), total = make('span', 'total');
    name.append(text, total);
    button.append(name, make('span', 'counts'), make('span', 'bar'));
    button.addEventListener('click', () => { settings[kind] = settings[kind] === item.name ? null : item.name; applySettings(); });
    child.append(button);
    return child;
  }, (child, item) => {
    const button = child.firstChild;
    button.setAttribute('aria-pressed', String(item.pressed));
    putPlain(button.querySelector('bdi'), item.name === '' ? '(no name)' : item.name);
    put(button.querySelector('.total'), String(item.total));
    put(button.querySelector('.counts'), (item.state ? item.state + ': ' : '') + phrase(item.states));
    button.classList.toggle('bad', [...UNHEALTHY].some(state => item.states[state]) || item.state === 'offline');
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
      applySettings();
    });
    return button;
  }, (button, item) => {
    put(button, item.count + ' ' + item.text);
    button.setAttribute('aria-pressed', String(item.pressed));
  });
}
function drawControls() {
  for (const header of document.querySelectorAll('[data-sort]')) {
    const sort = header.dataset.sort === settings.sort ? (settings.down ? 'descending' : 'ascending') : 'none';
    if (header.getAttribute('aria-sort') !== sort) header.setAttribute('aria-sort', sort);
  }
  for (const button of document.querySelectorAll('[data-view]')) button.setAttribute('aria-pressed', String(button.dataset.view === settings.view));
  at('clear').hidden = !(settings.q || settings.states.size || settings.type !== null || settings.group !== null);
}
let icon = '';
function drawIcon(colour) {
  if (icon === colour) return;
  icon = colour;
  at('icon').href = 'data:image/svg+xml,' + encodeURIComponent('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="' + colour + '"/></svg>');
}
