// What analytics says of a face, in words.

import { known, number, t } from './i18n.js';

// Below this confidence a value is shown as unknown: a guess helps nobody.
const SURE_ENOUGH = 0.15;
const POSE = ['yaw', 'pitch', 'roll'];

function word(name, value) {
  if (name === 'age') return t('estimate.age.value', { count: Math.round(value) });
  if (POSE.includes(name)) return t('estimate.degrees', { value: `${value >= 0.5 ? '+' : ''}${number(Math.round(value) + 0)}` });
  const side = value >= 0.5 ? 'yes' : 'no';
  const key = `estimate.${name}.${side}`;
  return known(key) ? t(key) : t('estimate.share', { value: number(100 * value) });
}

const label = (name) => (known(`estimate.${name}`) ? t(`estimate.${name}`) : name.replaceAll('_', ' '));

// [{name, label, words, confidence, sure}]
export function described(face) {
  return Object.entries(face.estimates).map(([name, { value, confidence }]) => {
    const sure = confidence >= SURE_ENOUGH;
    return { name, label: label(name), words: sure ? word(name, value) : t('estimate.unknown'), confidence, sure };
  });
}

// The words that fit on a card.
export function inShort(face) {
  const parts = described(face).filter((each) => each.sure);
  const pick = (name) => parts.find((each) => each.name === name)?.words;
  return [pick('age'), pick('gender')].filter(Boolean);
}

export function smiles(face) {
  const { smile } = face.estimates;
  return smile !== undefined && smile.confidence >= SURE_ENOUGH && smile.value >= 0.5;
}
