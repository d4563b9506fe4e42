// Signing in with the token that an admin gave.

import { h, icon } from './dom.js';
import { t } from './i18n.js';

export function signInView(signIn) {
  const fault = h('div', { class: 'note bad', role: 'alert', hidden: true });
  const input = h('input', { id: 'token', type: 'password', required: true, autocomplete: 'off', spellcheck: 'false', maxlength: '4096' });
  const submit = h('button', { class: 'button primary', type: 'submit' }, icon('lock'), h('span', {}, t('signin.do')));
  const form = h('form', {
    class: 'ask',
    onsubmit: async (event) => {
      event.preventDefault();
      submit.disabled = true;
      fault.hidden = true;
      try {
        await signIn(input.value.trim());
      } catch (error) {
        fault.hidden = false;
        fault.replaceChildren(icon('alert'), h('span', {}, error.words ?? error.message));
        input.select();
      } finally {
        submit.disabled = false;
      }
    },
  },
  h('h1', {}, t('signin.title')), h('p', { class: 'faint' }, t('signin.how')), fault,
  h('label', { class: 'field', for: 'token' }, h('span', { class: 'field-label' }, t('signin.token')), input), submit);
  return { element: h('section', { class: 'view sign-in' }, form), title: t('signin.title'), close() {} };
}
