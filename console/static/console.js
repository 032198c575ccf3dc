// Passkeys, which pages cannot use without a script, and the lines of a job that runs. Nothing here makes
// markup of text.
'use strict';

const toHex = (buffer) =>
  Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, '0')).join('');

const fromHex = (text) => new Uint8Array((text.match(/../g) || []).map((pair) => parseInt(pair, 16)));

// Sends JSON to a page of ours; a refusal becomes an error with its text and code.
async function post(path, body) {
  const answer = await fetch(path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  const value = await answer.json();
  if (!answer.ok) throw new Error(`${value.message} (${value.code})`);
  return value;
}

// Asks an authenticator to sign a challenge.
async function assertion(options) {
  const credential = await navigator.credentials.get({
    publicKey: {
      challenge: fromHex(options.challenge),
      rpId: options.rp_id,
      allowCredentials: options.credentials.map((id) => ({ type: 'public-key', id: fromHex(id) })),
      userVerification: 'required',
      timeout: 120000,
    },
  });
  return {
    credential: toHex(credential.rawId),
    authenticator_data: toHex(credential.response.authenticatorData),
    client_data: toHex(credential.response.clientDataJSON),
    signature: toHex(credential.response.signature),
  };
}

// Asks an authenticator for a new passkey.
async function registration(options, label) {
  const credential = await navigator.credentials.create({
    publicKey: {
      challenge: fromHex(options.challenge),
      rp: { id: options.rp_id, name: 'Quorate' },
      user: { id: fromHex(options.user), name: options.name, displayName: options.name },
      pubKeyCredParams: [{ type: 'public-key', alg: -7 }, { type: 'public-key', alg: -8 }],
      excludeCredentials: options.credentials.map((id) => ({ type: 'public-key', id: fromHex(id) })),
      authenticatorSelection: { residentKey: 'preferred', userVerification: 'required' },
      attestation: 'none',
      timeout: 120000,
    },
  });
  return {
    authenticator_data: toHex(credential.response.getAuthenticatorData()),
    client_data: toHex(credential.response.clientDataJSON),
    label,
  };
}

async function vote(form, choice) {
  const base = form.dataset.passkey;
  const { words, reason } = form.elements;
  const options = await post(`${base}/ballot`, { words: words.value, choice, reason: reason.value });
  return post(`${base}/passkey`, { ballot: options.signed, assertion: await assertion(options) });
}

async function halt(form) {
  const { scope, reason } = form.elements;
  const options = await post('/console/halt/compose', { scope: scope.value, reason: reason.value });
  return post('/console/halt/passkey', { halt: options.signed, assertion: await assertion(options) });
}

async function comment(form) {
  const base = form.dataset.passkey;
  const { text, answers } = form.elements;
  const options = await post(`${base}/compose`, { text: text.value, answers: answers.value });
  return post(`${base}/passkey`, { comment: options.signed, assertion: await assertion(options) });
}

async function signIn() {
  const options = await post('/console/passkeys/challenge', {});
  const signed = await assertion(options);
  return post('/console/passkeys/enter', { challenge: options.challenge, assertion: signed });
}

async function register(form) {
  const options = await post('/console/passkeys/options', {});
  const made = await registration(options, form.elements.label.value);
  return post('/console/passkeys/add', made);
}

// Runs an action of a form: shows its refusal there, or opens the page that it leads to.
async function act(form, action) {
  const place = form.querySelector('[data-refusal]');
  const buttons = form.querySelectorAll('button');
  place.hidden = true;
  buttons.forEach((button) => { button.disabled = true; });
  try {
    const { to } = await action();
    // Another place of the page that is shown is no new page: it is read again.
    const isHere = new URL(to, location.href).pathname === location.pathname;
    location.assign(to);
    if (isHere) location.reload();
  } catch (error) {
    place.textContent = error.message;
    place.hidden = false;
    buttons.forEach((button) => { button.disabled = false; });
  }
}

const ACTIONS = {
  vote: (form, button) => vote(form, button.dataset.choice),
  halt: (form) => halt(form),
  comment: (form) => comment(form),
  enter: () => signIn(),
  register: (form) => register(form),
};

document.querySelectorAll('button[data-act]').forEach((button) => {
  button.hidden = false;
  button.addEventListener('click', () => {
    const form = button.form;
    act(form, () => ACTIONS[button.dataset.act](form, button));
  });
});

// Pause between two requests for the lines of a job, and the most lines that its page keeps.
const FOLLOW_MS = 2000;
const LINES_KEPT = 2000;

// Appends lines to a log. It stays at its end if that was in view.
function append(log, lines) {
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
  lines.forEach((text) => {
    const line = document.createElement('span');
    line.className = 'line';
    line.textContent = `${text}\n`;
    log.append(line);
  });
  while (log.childNodes.length > LINES_KEPT) log.firstChild.remove();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

// Reads the lines that follow, until the job has ended; then the page is read again.
async function follow(log) {
  const { after, epoch } = log.dataset;
  try {
    const answer = await fetch(`${log.dataset.follow}?after=${after}&epoch=${epoch}`);
    if (answer.ok) {
      const next = await answer.json();
      if (String(next.epoch) !== epoch) log.replaceChildren();
      append(log, next.lines);
      log.dataset.after = next.after;
      log.dataset.epoch = next.epoch;
      if (next.ended) {
        location.reload();
        return;
      }
    }
  } catch (error) {
    // The replica may be gone for a moment.
  }
  setTimeout(() => follow(log), FOLLOW_MS);
}

document.querySelectorAll('pre[data-follow]').forEach((log) => {
  log.scrollTop = log.scrollHeight;
  follow(log);
});
