// Talking to the console's own back end. Every failure is an ApiError with a stable code.

import { known, t } from './i18n.js';

export class ApiError extends Error {
  constructor(code, message, status) {
    super(message);
    this.code = code;
    this.status = status;
  }

  // What to show: our own words for the code where there are any, and what the service said.
  get words() {
    const key = `error.${this.code}`;
    return known(key) ? t(key) : this.message;
  }
}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { 'X-Sfic-Console': '1', ...options.headers } });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('CONSOLE_AWAY', error.message, 0);
  }
  if (!answer.ok) {
    const fault = await answer.json().catch(() => ({}));
    if (answer.status === 401) dispatchEvent(new Event('sfic:signed-out'));
    throw new ApiError(fault.code ?? 'INTERNAL', fault.message ?? answer.statusText, answer.status);
  }
  return answer;
}

export const get = async (path, options) => (await ask(path, options)).json();

export const post = async (path, content, options) => (await ask(path, {
  ...options, method: 'POST', body: JSON.stringify(content), headers: { 'Content-Type': 'application/json' },
})).json();

export const postForm = async (path, form, options) => (await ask(path, { ...options, method: 'POST', body: form })).json();

export const blob = async (path, options) => (await ask(path, options)).blob();

// Lines of JSON as they arrive.
export async function* lines(path, form, options) {
  const answer = await ask(path, { ...options, method: 'POST', body: form });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const pieces = (held + value).split('\n');
    held = pieces.pop();
    for (const piece of pieces) if (piece) yield JSON.parse(piece);
  }
}

export const facePath = (id, rest = '') => `/api/faces/${encodeURIComponent(id)}${rest}`;
