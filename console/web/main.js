// The frame around the views: navigation, theme, language, who is signed in.

import { alertsView } from './alerts.js';
import { ask, get, post } from './api.js';
import { button, h, icon } from './dom.js';
import { faceView } from './face.js';
import { LANGUAGES, chooseLanguage, currentLanguage, loadLanguage, t } from './i18n.js';
import { liveView } from './live.js';
import { forgetPreviews } from './previews.js';
import { searchView } from './search.js';
import { signInView } from './signin.js';
import { systemView } from './system.js';

const VIEWS = {
  live: (_, parameters) => liveView(parameters),
  search: (_, parameters) => searchView(parameters),
  alerts: () => alertsView(),
  system: () => systemView(session),
  face: (id) => faceView(id),
};
const PLACES = ['live', 'search', 'alerts', 'system'];
const THEMES = { auto: 'contrast', light: 'sun', dark: 'moon' };

let view = null;
const main = h('main', { id: 'main', tabindex: '-1' });

function navigation() {
  return h('nav', { class: 'places', 'aria-label': t('nav.label') }, PLACES.map((name) => h('a', { href: `#/${name}`, class: 'place', dataset: { place: name } }, icon(name === 'alerts' ? 'bell' : name), h('span', {}, t(`${name}.title`)))));
}

function themeSwitch() {
  const current = () => localStorage.getItem('sfic.theme') ?? 'auto';
  const control = h('button', { type: 'button', class: 'tool', onclick: () => {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(current()) + 1) % names.length];
    if (next === 'auto') {
      localStorage.removeItem('sfic.theme');
      delete document.documentElement.dataset.theme;
    } else {
      localStorage.setItem('sfic.theme', next);
      document.documentElement.dataset.theme = next;
    }
    draw();
  } });
  const draw = () => control.replaceChildren(icon(THEMES[current()]), h('span', {}, t(`theme.${current()}`)));
  draw();
  return control;
}

function languageSwitch() {
  return h('label', { class: 'tool' }, h('span', { class: 'visually-hidden' }, t('language')), h('select', {
    onchange: async (event) => { chooseLanguage(event.target.value); await loadLanguage(); frame(); show(); },
  }, Object.entries(LANGUAGES).map(([tag, name]) => h('option', { value: tag, lang: tag, selected: tag === currentLanguage() }, name))));
}

function person(session) {
  if (session.mode !== 'signed_in') {
    return h('div', { class: 'person', title: t('session.open.why') }, icon('lock'), h('span', {}, t(`session.${session.mode}`)));
  }
  const role = session.roles.includes('admin') ? 'admin' : 'operator';
  return h('div', { class: 'person' }, icon('person'), h('span', {}, `${session.name} · ${t(`role.${role}`)}`),
    button(t('session.sign_out'), { icon: 'out', kind: 'ghost', quiet: true, onclick: () => signOut() }));
}

let session = { mode: 'local', roles: [] };

async function signOut() {
  await ask('/api/session', { method: 'DELETE' });
  forgetPreviews();
  await start();
}

async function signIn(token) {
  await post('/api/session', { token });
  await start();
}

async function start() {
  session = await get('/api/session').catch(() => session);
  frame();
  show();
}

function frame() {
  document.body.replaceChildren(
    h('a', { class: 'skip', href: '#main', onclick: (event) => { event.preventDefault(); main.focus(); } }, t('nav.skip')),
    h('header', { class: 'rail' },
      h('div', { class: 'brand' }, h('img', { src: '/icon.svg', alt: '', width: '28', height: '28' }), h('span', {}, 'sfic')),
      session.mode === 'signed_out' ? null : navigation(),
      h('div', { class: 'tools' }, session.mode === 'signed_out' ? null : person(session), themeSwitch(), languageSwitch())),
    main);
}

function show() {
  const [path, query = ''] = location.hash.slice(2).split('?');
  const [name, argument = ''] = path.split('/');
  const made = VIEWS[name] ? name : 'live';
  view?.close();
  view = session.mode === 'signed_out' ? signInView(signIn)
    : VIEWS[made](decodeURIComponent(argument), new URLSearchParams(query));
  main.replaceChildren(view.element);
  document.title = t('title', { view: view.title });
  for (const link of document.querySelectorAll('.place')) {
    if (link.dataset.place === made) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
}

await loadLanguage();
addEventListener('hashchange', () => { show(); main.focus({ preventScroll: true }); });
addEventListener('sfic:signed-out', () => { if (session.mode === 'signed_in') start(); });
await start();
