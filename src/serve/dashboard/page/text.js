// Constants and texts. The files of this folder are one script: see routes.rs.
const MAX_LOGGED = 200, ANNOUNCE_INTERVAL = 5000, DETAILS_INTERVAL = 5, SEARCH_DELAY = 300, MAX_ROWS = 1000;
const SIGNS = { dead: '✕', never_started: '⊘', stalled: '■', stale: '▲', overdue: '◆', unobserved: '?', starting: '◔',
  stopping: '◓', processing: '▶', active: '●', idle: '○', stopped: '–' };
const UNHEALTHY = new Set(['dead', 'never_started', 'stalled', 'stale', 'overdue', 'unobserved']);
const ENDED = new Set(['dead', 'stopped']);
// What an operator does about each state.
const ADVICE = {
  dead: 'ended, and not started again. Open a worker for its reason; mend the cause, then start it again.',
  never_started: 'registered, and never made progress. The set-up hangs or failed: see the log of the process.',
  stalled: 'alive, without progress for longer than allowed. Open a worker to see where it hangs; restart its process if it does not recover.',
  stale: 'no heartbeats. See whether the process and its host live, and reach the store.',
  overdue: 'at one task for longer than allowed. Open a worker for its task; let it go on, or stop it.',
  unobserved: 'nobody observes them: their process gets no time, or its pacemaker does not tick.',
};
const at = id => document.getElementById(id);
const stateName = state => state.replace('_', ' ');
const collator = new Intl.Collator('en', { numeric: true });
const showsReasons = document.body.dataset.shown === 'yes', hasFleet = document.body.dataset.fleet === 'yes';

// --- texts -----------------------------------------------------------------------------------------

// Invisible characters, and those that change the direction of the text, are shown as code points.
const INVISIBLE = /(?![\n\t])[{{unprintable}}]/gu;
const plain = text => String(text).replace(INVISIBLE, c => '⟨U+' + c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0') + '⟩');
function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
// Both remember their text, because most rows are drawn again with the same one.
function putPlain(element, text) {
  if (element.shownText === text) return;
  element.shownText = text;
  const seen = text == null ? '' : plain(text);
  put(element, seen);
  if (element.title !== seen) element.title = seen;
}
// A text whose middle is cut where it is too long: its end tells it from others.
function putMiddle(element, text) {
  if (element.shownText === text) return;
  element.shownText = text;
  const seen = text == null ? '' : plain(text);
  element.title = seen;
  element.classList.add('middle');
  const letters = [...seen], tail = letters.length > 12 ? Math.min(10, letters.length >> 1) : 0, from = letters.length - tail;
  element.style.setProperty('--tail', tail);
  element.replaceChildren(make('span', 'start', letters.slice(0, from).join('')));
  if (tail) element.append(make('span', 'end', letters.slice(from).join('')));
}
function age(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return s + ' s';
  if (s < 600) return Math.floor(s / 60) + ' min ' + (s % 60) + ' s';
  if (s < 3600) return Math.floor(s / 60) + ' min';
  if (s < 86400) return Math.floor(s / 3600) + ' h ' + Math.floor(s % 3600 / 60) + ' min';
  return Math.floor(s / 86400) + ' d ' + Math.floor(s % 86400 / 3600) + ' h';
}
const clockTime = new Intl.DateTimeFormat([], { timeStyle: 'medium', hourCycle: 'h23' });
const dayAndTime = new Intl.DateTimeFormat([], { dateStyle: 'medium', timeStyle: 'medium', hourCycle: 'h23' });
const withZone = new Intl.DateTimeFormat([], { dateStyle: 'medium', timeStyle: 'long', hourCycle: 'h23' });
// Milliseconds since the Unix epoch as a time, with the date unless it is today.
function timeText(millis) {
  const date = new Date(millis);
  return (date.toDateString() === new Date().toDateString() ? clockTime : dayAndTime).format(date);
}
const absolute = millis => withZone.format(new Date(millis));
const count = (n, what) => n.toLocaleString('en') + ' ' + what + (n === 1 ? '' : 's');
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

// --- copying ---------------------------------------------------------------------------------------

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Only pages of this host, or with TLS, have a clipboard.
    const area = make('textarea', 'unseen');
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
}
function copyButton(label, text) {
  const button = make('button', 'copy', label);
  button.type = 'button';
  button.addEventListener('click', async () => {
    await copyText(text());
    button.focus({ preventScroll: true });
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}
