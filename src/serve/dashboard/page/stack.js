// Call stacks: the application's own calls first, the others folded.

const isOwnCall = line => line.startsWith('>');
const callName = line => line.replace(/^>?\s*\d+: /, '');
function scrollable(text) {
  const pre = make('pre', '', text);
  // The keyboard scrolls it.
  pre.tabIndex = 0;
  return pre;
}
function folded(title, ...contents) {
  const fold = make('details', 'stack');
  fold.append(make('summary', '', title), ...contents);
  return fold;
}
// The parts of a call stack: the calls of the application, and all calls, folded.
function stackParts(lines) {
  const text = lines.join('\n'), own = lines.filter(isOwnCall).map(callName);
  const copy = copyButton('Copy the call stack', () => text);
  if (!own.length) return [scrollable(text), copy];
  return [scrollable(own.join('\ncalled from ')), folded('All calls', scrollable(text)), copy];
}
// The call stack of an unwell worker.
function showHung(panel, lines) {
  const text = lines.join('\n');
  if (panel.hung && panel.hung.dataset.text === text) return;
  if (panel.hung) panel.hung.remove();
  panel.hung = null;
  if (!text) return;
  const own = lines.find(isOwnCall);
  panel.hung = folded(own ? 'Hangs at ' + callName(own) : 'Call stack', ...stackParts(lines));
  panel.hung.dataset.text = text;
  panel.list.after(panel.hung);
}
// The call stack of a panic. It is requested when it is unfolded, because resolving it takes a while.
function callStack(params) {
  const fold = folded('Call stack', scrollable('being resolved …'));
  fold.addEventListener('toggle', async () => {
    if (!fold.open || fold.dataset.asked) return;
    fold.dataset.asked = 'yes';
    const show = (...parts) => { fold.lastElementChild.remove(); fold.append(...parts); };
    try {
      const text = await request('/v1/worker/death', params);
      const [, message, calls] = /^([^]*?\n\n)(?:in [^\n]*\n\n)?((?:[> ]\s*\d+: [^]*)?)$/.exec(text) || [null, text, ''];
      const box = make('div');
      if (calls) box.append(scrollable(message.trimEnd()), ...stackParts(calls.trimEnd().split('\n')));
      else box.append(scrollable(text.trimEnd()), copyButton('Copy the call stack', () => text));
      show(box);
    } catch (error) {
      delete fold.dataset.asked;
      show(scrollable('not available: ' + error.message));
    }
  });
  return fold;
}
