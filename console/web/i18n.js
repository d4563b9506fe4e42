// Words and formats in the person's language. All words are in locales/*.json.

export const LANGUAGES = { en: 'English', de: 'Deutsch' };

let words = {};
let plural;
let language = 'en';
let tag = 'en'; // with the region, for dates and numbers

export async function loadLanguage() {
  const wanted = [localStorage.getItem('sfic.language'), ...navigator.languages.map((tag) => tag.slice(0, 2))];
  language = wanted.find((tag) => tag in LANGUAGES) ?? 'en';
  words = await (await fetch(`/locales/${language}.json`)).json();
  tag = navigator.languages.find((each) => each.slice(0, 2) === language) ?? language;
  plural = new Intl.PluralRules(language);
  document.documentElement.lang = language;
}

export const currentLanguage = () => language;

export function chooseLanguage(tag) {
  localStorage.setItem('sfic.language', tag);
}

export const known = (key) => key in words;

// The words of a key; {name} is filled in, and key.one / key.other is chosen by `count`.
export function t(key, values = {}) {
  const form = 'count' in values && !(key in words) ? `${key}.${plural.select(values.count)}` : key;
  const text = words[form] ?? words[`${key}.other`] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    if (value === undefined) return whole;
    return typeof value === 'number' ? number(value) : value;
  });
}

const formats = new Map();
function format(kind, options) {
  const key = `${kind.name}${tag}${JSON.stringify(options)}`;
  if (!formats.has(key)) formats.set(key, new kind(tag, options));
  return formats.get(key);
}

export const number = (value, digits = 0) => format(Intl.NumberFormat, { maximumFractionDigits: digits }).format(value);

// With all its digits, for columns of figures.
export const fixed = (value, digits) => format(Intl.NumberFormat, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);

export const percent = (value) => format(Intl.NumberFormat, { style: 'percent', maximumFractionDigits: 0 }).format(value);

export function bytes(value) {
  const units = ['byte', 'kilobyte', 'megabyte', 'gigabyte', 'terabyte'];
  let step = 0;
  while (value >= 1000 && step < units.length - 1) { value /= 1000; step += 1; }
  return format(Intl.NumberFormat, {
    style: 'unit', unit: units[step], unitDisplay: step ? 'short' : 'long', maximumFractionDigits: step ? 1 : 0,
  }).format(value);
}

// In SI symbols, which are the same in every language.
export function duration(milliseconds) {
  if (milliseconds < 1000) return `${number(milliseconds, milliseconds < 10 ? 1 : 0)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 120) return `${number(seconds, 1)} s`;
  if (seconds < 7200) return `${number(seconds / 60)} min`;
  if (seconds < 172_800) return `${number(seconds / 3600)} h`;
  return `${number(seconds / 86_400)} d`;
}

// Time of day; with the date when it is not today.
export function clock(milliseconds) {
  const moment = new Date(milliseconds);
  const today = moment.toDateString() === new Date().toDateString();
  return format(Intl.DateTimeFormat, today ? { timeStyle: 'medium' } : { dateStyle: 'short', timeStyle: 'short' }).format(moment);
}

export const moment = (milliseconds) => format(Intl.DateTimeFormat, { dateStyle: 'medium', timeStyle: 'medium' }).format(new Date(milliseconds));
