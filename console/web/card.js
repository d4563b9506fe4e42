// A face as a card: small picture, camera, time, how usable it is, and what analytics says.

import { h, icon, styled } from './dom.js';
import { inShort, smiles } from './estimates.js';
import { clock, fixed, percent, t } from './i18n.js';
import { preview } from './previews.js';

const LIKELY = 0.5;

export function faceCard(face, { similarity, seen = 1, label } = {}) {
  const said = inShort(face);
  const words = smiles(face) ? [...said, t('estimate.smile.yes')] : said;
  const picture = h('div', { class: 'card-picture' }, icon('person'));
  const score = styled(h('span', { class: 'score', title: t('card.score', { value: percent(face.score) }) },
    h('span', { class: 'score-bar' })), { '--score': face.score });
  const name = [
    t('card.name', { camera: face.camera, time: clock(face.captured) }),
    t('card.score', { value: percent(face.score) }), ...words,
    similarity === undefined ? null : t('card.similarity', { value: fixed(similarity, 2) }),
    seen > 1 ? t('card.seen', { count: seen }) : null, label,
  ].filter(Boolean).join(', ');
  const link = h('a', { class: 'card', href: `#/face/${face.id}`, 'aria-label': name },
    picture,
    h('div', { class: 'card-text' },
      h('div', { class: 'card-line' }, h('span', { class: 'camera' }, face.camera), score),
      h('time', { class: 'card-time', datetime: new Date(face.captured).toISOString() }, clock(face.captured)),
      h('div', { class: 'card-words', title: label ?? words.join(', ') },
        h('span', {}, label ?? (said.length ? said.join(' · ') : t('card.nothing'))),
        !label && smiles(face) ? icon('smile') : null)),
    seen > 1 ? h('span', { class: 'badge seen' }, `× ${seen}`) : null,
    similarity === undefined ? null
      : h('span', { class: `badge similarity${similarity >= LIKELY ? ' likely' : ''}` }, fixed(similarity, 2)));
  const element = h('div', { class: 'cell' }, link);
  element.leave = preview(face.id, (address) => {
    if (!address) {
      picture.classList.add('without');
      return;
    }
    const image = h('img', { src: address, alt: '', decoding: 'async', draggable: 'false' });
    picture.replaceChildren(image);
  });
  return element;
}
