// Constants and texts. The files of this folder are one script: see routes.rs.
const MAX_LOGGED = 200, MAX_DRAWN = 2000, ANNOUNCE_INTERVAL = 5000, DETAILS_INTERVAL = 5;
const SIGNS = { dead: '✕', never_started: '⊘', stalled: '■', stale: '▲', overdue: '◆', unobserved: '?', starting: '◔',
  stopping: '◓', processing: '▶', active: '●', idle: '○', stopped: '–' };
const UNHEALTHY = new Set(['dead', 'never_started', 'stalled', 'stale', 'overdue', 'unobserved']);
const ENDED = new Set(['dead', 'stopped']);
const at = id => document.getElementById(id);
const stateName = state => state.replace('_', ' ');
const collator = new Intl.Collator('en', { numeric: true });
const showsReasons = document.body.dataset.shown === 'yes';

// --- texts -----------------------------------------------------------------------------------------

// Invisible characters, and those that change the direction of the text, are shown as code points.
const INVISIBLE = /(?![\n\t])[{{unprintable}}]/gu;
const plain = text => String(text).replace(INVISIBLE, c => '⟨U+' + c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0') + '⟩');
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
function putPlain(element, text) {
  const seen = text == null ? '' : plain(text);
  put(element, seen);
  if (element.title !== seen) element.title = seen;
}
function age(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return s + ' s';
  if (s < 600) return Math.floor(s / 60) + ' min ' + (s % 60) + ' s';
  if (s < 3600) return Math.floor(s / 60) + ' min';
  if (s < 86400) return Math.floor(s / 3600) + ' h ' + Math.floor(s % 3600 / 60) + ' min';
  return Math.floor(s / 86400) + ' d ' + Math.floor(s % 86400 / 3600) + ' h';
}
function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text != null) element.textContent = plain(text);
  return element;
}
function badge(element, state) {
  if (element.dataset.state === state) return;
  element.dataset.state = state;
  element.className = 'state ' + state;
  const sign = make('span', '', SIGNS[state] || '?');
  sign.setAttribute('aria-hidden', 'true');
  element.replaceChildren(sign, stateName(state));
}
