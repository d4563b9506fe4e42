// Search: by a face, by a picture, by attributes and time.

import { ApiError, post, postForm } from './api.js';
import { faceCard } from './card.js';
import { announce, button, h, icon } from './dom.js';
import { Filters } from './filters.js';
import { Grid } from './grid.js';
import { number, t } from './i18n.js';
import { preview } from './previews.js';

const LIMIT = 500;

export function searchView(parameters) {
  let faceId = parameters.get('face') ?? '';
  let picture = null;
  let least = 0;
  let hits = [];
  let more = false;
  let byVisit = true;
  let asked = 0; // a newer search makes an older answer stale

  const filters = new Filters(() => search());
  const grid = new Grid({ draw: (face) => faceCard(face, { similarity: face.similarity ?? undefined, seen: face.seen }), label: t('search.results') });
  const facts = h('span', { class: 'facts', role: 'status' });
  const fault = h('div', { class: 'note bad', role: 'alert', hidden: true });
  const empty = h('div', { class: 'empty', hidden: true });
  const example = h('div', { class: 'example' });
  const leastShown = h('output', {}, number(least, 2));
  const leastField = h('label', { class: 'inline', hidden: true }, h('span', {}, t('search.least')),
    h('input', { type: 'range', min: '0', max: '1', step: '0.05', value: '0', onchange: () => search(), oninput: (event) => { least = Number(event.target.value); leastShown.textContent = number(least, 2); } }), leastShown);
  const visits = h('label', { class: 'check' }, h('input', { type: 'checkbox', checked: byVisit, onchange: (event) => { byVisit = event.target.checked; draw(); } }), h('span', {}, t('search.by_visit')));
  const file = h('input', {
    type: 'file', accept: 'image/*', class: 'visually-hidden', id: 'search-picture', tabindex: '-1', 'aria-label': t('search.picture'),
    onchange: (event) => { if (event.target.files[0]) byPicture(event.target.files[0]); },
  });
  const choose = button(t('search.picture'), { icon: 'picture', onclick: () => file.click() });
  const idInput = h('input', { type: 'search', maxlength: '64', placeholder: t('search.face.placeholder'), 'aria-label': t('search.face'), autocomplete: 'off', spellcheck: 'false' });
  const idForm = h('form', { class: 'id-form', onsubmit: (event) => { event.preventDefault(); byFace(idInput.value.trim()); } },
    idInput, h('button', { class: 'button', type: 'submit' }, icon('likeness'), h('span', {}, t('search.face.do'))));
  const element = h('section', { class: 'view search' },
    h('header', { class: 'bar' }, h('h1', {}, t('search.title')), facts, h('div', { class: 'bar-end' }, filters.element)),
    h('div', { class: 'bar second' }, idForm, choose, file, example, leastField, visits),
    fault, h('div', { class: 'grid-frame' }, grid.element, empty));
  element.addEventListener('dragover', (event) => { event.preventDefault(); });
  element.addEventListener('drop', (event) => {
    event.preventDefault();
    const dropped = event.dataTransfer.files[0];
    if (dropped) byPicture(dropped);
  });

  function byFace(id) {
    faceId = id;
    picture = null;
    search();
  }

  function byPicture(chosen) {
    picture = chosen;
    faceId = '';
    search();
  }

  function drawExample() {
    const clear = button(t('search.example.clear'), { icon: 'close', kind: 'ghost', quiet: true, onclick: () => { faceId = ''; picture = null; file.value = ''; idInput.value = ''; search(); } });
    leastField.hidden = !faceId && !picture;
    if (!faceId && !picture) {
      example.replaceChildren();
      return;
    }
    const thumb = h('span', { class: 'thumb' });
    if (picture) thumb.append(h('img', { src: URL.createObjectURL(picture), alt: '', onload: (event) => URL.revokeObjectURL(event.target.src) }));
    else preview(faceId, (address) => { if (address) thumb.replaceChildren(h('img', { src: address, alt: '' })); });
    example.replaceChildren(thumb, h('span', { class: 'example-name' }, picture ? t('search.like', { what: picture.name }) : t('search.like.face')), clear);
  }

  // Of each visit the best hit, which comes first.
  function grouped() {
    const best = new Map();
    for (const face of hits) {
      const key = face.visit || face.id;
      if (best.has(key)) best.get(key).seen += 1;
      else best.set(key, { ...face, seen: 1 });
    }
    return [...best.values()];
  }

  function draw() {
    const shown = byVisit ? grouped() : hits;
    grid.set([]);
    grid.set(shown);
    grid.top();
    const words = t(more ? 'search.found.first' : 'search.found', { count: hits.length })
      + (byVisit ? ` · ${t('search.visits', { count: shown.length })}` : '');
    facts.textContent = words;
    announce(words);
    empty.hidden = hits.length > 0;
  }

  async function search() {
    const mine = ++asked;
    drawExample();
    const form = { ...filters.form(), limit: LIMIT };
    if (faceId) form.face_id = faceId;
    if ((faceId || picture) && least > 0) form.min_similarity = least;
    element.classList.add('loading');
    fault.hidden = true;
    try {
      let answer;
      if (picture) {
        const data = new FormData();
        data.set('form', JSON.stringify(form));
        data.set('picture', picture);
        answer = await postForm('/api/search/picture', data);
      } else answer = await post('/api/search', form);
      if (mine !== asked) return;
      for (const face of answer.hits) filters.know(face.camera);
      ({ hits } = answer);
      more = Boolean(answer.next_page);
      draw();
    } catch (error) {
      if (mine !== asked) return;
      if (!(error instanceof ApiError)) throw error;
      grid.set([]);
      facts.textContent = '';
      empty.hidden = true;
      fault.hidden = false;
      fault.replaceChildren(icon('alert'), h('span', {}, error.words), h('code', {}, error.code));
    } finally {
      if (mine === asked) element.classList.remove('loading');
    }
  }

  empty.append(icon('search'), h('p', {}, t('search.empty')));
  idInput.value = faceId;
  search();
  return { element, title: t('search.title'), close: () => grid.close() };
}
