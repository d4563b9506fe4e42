// Building elements. Nothing here ever parses HTML: text stays text (and Trusted Types stay on).

const SVG = 'http://www.w3.org/2000/svg';

const PATHS = {
  live: 'M3 12h3l3-8 5 16 3-8h4',
  search: 'M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM20 20l-4-4',
  system: 'M4 5h16v6H4zM4 15h16v4H4zM8 8h.01M8 17h.01',
  pause: 'M9 5v14M15 5v14',
  play: 'M7 5l12 7-12 7z',
  out: 'M10 4H5v16h5M15 8l4 4-4 4M19 12H9',
  bell: 'M6 17V11a6 6 0 0 1 12 0v6l2 2H4zM10 21h4',
  bin: 'M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13',
  back: 'M15 5l-7 7 7 7',
  download: 'M12 4v11M7 11l5 5 5-5M5 20h14',
  filter: 'M4 6h16M7 12h10M10 18h4',
  camera: 'M4 8h4l2-3h4l2 3h4v11H4zM12 10a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7z',
  sun: 'M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.5 1.5M17.5 17.5L19 19M5 19l1.5-1.5M17.5 6.5L19 5',
  moon: 'M20 14A8 8 0 1 1 10 4a6.5 6.5 0 0 0 10 10z',
  contrast: 'M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 3v18',
  close: 'M6 6l12 12M18 6L6 18',
  up: 'M12 19V5M6 11l6-6 6 6',
  lock: 'M6 11h12v9H6zM8 11V8a4 4 0 0 1 8 0v3',
  alert: 'M12 4l9 16H3zM12 10v4M12 17h.01',
  check: 'M5 12l5 5 9-10',
  likeness: 'M9 5a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM2 20c1-4 4-5 7-5s6 1 7 5M16 6a3.5 3.5 0 0 1 0 7M18 15c2 .6 3.4 2 4 5',
  picture: 'M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01',
  points: 'M5 8h.01M9 7h.01M15 7h.01M19 8h.01M7 11h.01M17 11h.01M12 10v4M9 17c2 1.5 4 1.5 6 0',
  person: 'M12 4a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM4 20c1-4 4-6 8-6s7 2 8 6',
  smile: 'M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM9 10h.01M15 10h.01M8 14c1 2 2.4 3 4 3s3-1 4-3',
  list: 'M8 6h12M8 12h12M8 18h12M4 6h.01M4 12h.01M4 18h.01',
};

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'class') element.className = value;
    else if (name === 'dataset') Object.assign(element.dataset, value);
    else if (name in element && typeof value !== 'string' && !name.startsWith('aria')) element[name] = value;
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', PATHS[name]);
  svg.append(path);
  return svg;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function button(label, { icon: name, kind = '', quiet = false, ...props } = {}) {
  return h('button', { type: 'button', class: `button ${kind}`, ...(quiet ? { 'aria-label': label, title: label } : {}), ...props },
    name ? icon(name) : null, quiet ? null : h('span', {}, label));
}

// A length that a style needs. Through the object model, which the content security policy allows.
export function styled(element, styles) {
  for (const [name, value] of Object.entries(styles)) element.style.setProperty(name, value);
  return element;
}

const speaker = h('div', { class: 'visually-hidden', role: 'status', 'aria-live': 'polite' });

// Tell screen readers what sighted people see happen.
export function announce(text) {
  if (!speaker.isConnected) document.body.append(speaker);
  speaker.textContent = text;
}
