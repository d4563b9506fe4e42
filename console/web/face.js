// One face: why it is wanted, then its picture as it sharpens, and what is known of it.

import { blob, facePath, get, lines, post } from './api.js';
import { announce, button, h, icon, styled, svg } from './dom.js';
import { described } from './estimates.js';
import { bytes, duration, moment, number, percent, t } from './i18n.js';
import { preview } from './previews.js';

const LAYERS = ['basic', 'middle', 'enhanced'];
const PIXELS = 1024 * 1024;
const PURPOSES = ['purpose.incident', 'purpose.missing', 'purpose.quality'];
// Lines of the 68 landmarks, iBUG order: [first, last, closed].
const FEATURES = [[0, 16], [17, 21], [22, 26], [27, 30], [31, 35], [36, 41, true], [42, 47, true], [48, 59, true], [60, 67, true]];

const fromBase64 = (text, type) => URL.createObjectURL(
  new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type }));

export function faceView(id) {
  const abort = new AbortController();
  const addresses = [];
  const levels = new Map(); // layer -> what came
  let face = null;
  let purpose = sessionStorage.getItem('sfic.purpose') ?? '';
  let frameFile = null;
  let inFrame = false;
  let mode = 'single';
  let left = 'basic';
  let right = 'enhanced';

  const stage = h('div', { class: 'stage' });
  const under = h('div', { class: 'under' });
  const side = h('div', { class: 'side' });
  const steps = h('ol', { class: 'steps' });
  const title = h('h1', {}, t('face.title'));
  const element = h('section', { class: 'view face' },
    h('header', { class: 'bar' },
      h('a', { class: 'button ghost', href: '#/live', onclick: (event) => { if (history.length > 1) { event.preventDefault(); history.back(); } } },
        icon('back'), h('span', {}, t('face.back'))),
      title, h('div', { class: 'bar-end' },
        h('a', { class: 'button', href: `#/search?face=${encodeURIComponent(id)}` }, icon('likeness'), h('span', {}, t('face.similar'))))),
    h('div', { class: 'face-columns' }, h('div', { class: 'stage-column' }, stage, under), side));

  // -- before the picture: why

  function askPurpose() {
    const input = h('input', {
      id: 'purpose', name: 'purpose', required: true, maxlength: '200', value: purpose, autocomplete: 'off',
      list: 'purposes', placeholder: t('purpose.placeholder'),
    });
    const file = h('input', {
      type: 'file', accept: 'image/*', id: 'frame-file', class: 'file',
      onchange: (event) => { frameFile = event.target.files[0] ?? null; },
    });
    const fileField = h('div', { class: 'field', hidden: true },
      h('label', { class: 'field-label', for: 'frame-file' }, t('face.frame.file')), file, h('p', { class: 'faint' }, t('face.frame.hint')));
    const paste = face.frame ? h('label', { class: 'check' },
      h('input', { type: 'checkbox', checked: inFrame, onchange: (event) => { inFrame = event.target.checked; fileField.hidden = !inFrame; } }),
      h('span', {}, t('face.frame.ask'))) : null;
    const form = h('form', { class: 'ask', onsubmit: (event) => { event.preventDefault(); purpose = input.value.trim(); if (purpose) reconstruct(); } },
      h('div', { class: 'ask-head' }, icon('lock'), h('h2', {}, t('purpose.title'))),
      h('p', { class: 'faint' }, t('purpose.why')),
      h('label', { class: 'field', for: 'purpose' }, h('span', { class: 'field-label' }, t('purpose.label')), input),
      h('datalist', { id: 'purposes' }, PURPOSES.map((key) => h('option', { value: t(key) }))),
      paste, fileField,
      h('button', { class: 'button primary', type: 'submit' }, icon('picture'), h('span', {}, t('purpose.show'))));
    const backdrop = h('div', { class: 'backdrop' });
    const leave = preview(id, (address) => { if (address) backdrop.append(h('img', { src: address, alt: '' })); });
    abort.signal.addEventListener('abort', leave);
    stage.replaceChildren(backdrop, form);
    stage.classList.add('asking');
    under.replaceChildren();
  }

  // -- the picture, level by level

  function pictureForm() {
    const form = new FormData();
    form.set('purpose', purpose);
    if (inFrame) {
      form.set('paste_back', 'true');
      if (frameFile) form.set('frame', frameFile);
    }
    return form;
  }

  async function reconstruct() {
    sessionStorage.setItem('sfic.purpose', purpose);
    levels.clear();
    stage.classList.remove('asking');
    drawStage();
    const started = performance.now();
    for (const layer of LAYERS) drawStep(layer, 'waiting');
    try {
      for await (const line of lines(facePath(id, '/levels'), pictureForm(), { signal: abort.signal })) {
        if (line.error) { fail(line.error.code, line.error.message); break; }
        line.address = fromBase64(line.picture, line.media_type);
        addresses.push(line.address);
        if (line.frame) {
          line.frameAddress = fromBase64(line.frame, line.media_type);
          addresses.push(line.frameAddress);
        }
        delete line.picture;
        delete line.frame;
        line.arrived = performance.now() - started;
        levels.set(line.level, line);
        right = line.level;
        announce(t('face.arrived', { layer: t(`layer.${line.level}`), bytes: bytes(line.layer_bytes) }));
        drawStage();
        for (const layer of LAYERS) drawStep(layer, levels.has(layer) ? 'done' : 'waiting');
      }
    } catch (error) {
      if (error.name === 'AbortError') return;
      fail(error.code, error.words ?? error.message);
    }
    for (const layer of LAYERS) drawStep(layer, levels.has(layer) ? 'done' : 'missing');
    drawUnder();
  }

  function fail(code, message) {
    const note = h('div', { class: 'note bad', role: 'alert' }, icon('alert'), h('span', {}, message), h('code', {}, code),
      code === 'ACCESS_DENIED' && levels.size ? button(t('face.grant'), { onclick: async (event) => {
        event.currentTarget.disabled = true;
        try {
          await post(facePath(id, '/grant'), { purpose });
          note.remove();
          await reconstruct();
        } catch (error) { note.remove(); fail(error.code, error.words ?? error.message); }
      } }) : button(t('face.again'), { onclick: () => { note.remove(); askPurpose(); } }));
    if (levels.size) under.before(note);
    else {
      askPurpose();
      stage.querySelector('.ask').prepend(note);
    }
  }

  const img = (level, kind = 'address') => h('img', {
    src: levels.get(level)[kind], draggable: 'false',
    alt: t('face.alt', { layer: t(`layer.${level}`), camera: face.camera, time: moment(face.captured) }),
  });

  function drawStage() {
    if (!levels.size) {
      stage.replaceChildren(h('div', { class: 'backdrop' }), h('div', { class: 'busy' }, h('span', { class: 'spinner' }), t('face.fetching')));
      const backdrop = stage.firstChild;
      preview(id, (address) => { if (address) backdrop.append(h('img', { src: address, alt: '' })); });
      return;
    }
    const strip = h('div', { class: 'strip' }, icon('alert'), t('notice'));
    const shown = levels.get(right);
    if (mode === 'frame' && shown.frameAddress) {
      stage.replaceChildren(h('div', { class: 'sheet frame-sheet' }, img(right, 'frameAddress')), strip);
      return;
    }
    if (mode === 'compare' && levels.size > 1) {
      const sheet = h('div', { class: 'sheet compare' }, img(right), h('div', { class: 'before' }, img(left)), h('div', { class: 'handle' }));
      const slider = h('input', {
        type: 'range', min: '0', max: '100', step: '1', value: '50', class: 'split', 'aria-label': t('face.compare.slider'),
        oninput: (event) => styled(sheet, { '--split': `${event.target.value}%` }),
      });
      styled(sheet, { '--split': '50%' });
      sheet.append(h('span', { class: 'tag tag-left' }, t(`layer.${left}`)), h('span', { class: 'tag tag-right' }, t(`layer.${right}`)), slider);
      stage.replaceChildren(sheet, strip);
      return;
    }
    let sheet = stage.querySelector('.sheet.single');
    if (!sheet) {
      sheet = h('div', { class: 'sheet single' });
      stage.replaceChildren(sheet, strip);
    }
    const fresh = img(right);
    fresh.classList.add('arriving');
    for (const old of sheet.querySelectorAll('img')) old.setAttribute('aria-hidden', 'true');
    sheet.append(fresh);
    fresh.addEventListener('animationend', () => {
      fresh.classList.remove('arriving');
      while (sheet.firstElementChild && sheet.firstElementChild !== fresh) sheet.firstElementChild.remove();
      points();
    });
    points();
  }

  let showPoints = false;
  function points() {
    stage.querySelector('svg.points')?.remove();
    if (!showPoints || mode !== 'single' || face.landmarks.length !== 136) return;
    const at = (index) => `${face.landmarks[2 * index]},${face.landmarks[2 * index + 1]}`;
    stage.querySelector('.sheet').append(svg('svg', { class: 'points', viewBox: '0 0 1 1', 'aria-hidden': 'true' },
      ...FEATURES.map(([first, last, closed]) => svg(closed ? 'polygon' : 'polyline', {
        points: Array.from({ length: last - first + 1 }, (_, step) => at(first + step)).join(' '),
      }))));
  }

  function drawUnder() {
    if (!levels.size) return;
    const modes = ['single', ...(levels.size > 1 ? ['compare'] : []), ...(levels.get(right).frameAddress ? ['frame'] : [])];
    const switcher = h('div', { class: 'segments', role: 'group', 'aria-label': t('face.mode') }, modes.map((name) => h('button', {
      type: 'button', 'aria-pressed': String(mode === name), onclick: () => { mode = name; stage.replaceChildren(); drawStage(); drawUnder(); },
    }, t(`face.mode.${name}`))));
    const pick = (label, value, change) => h('label', { class: 'inline' }, h('span', {}, label), h('select', { onchange: (event) => { change(event.target.value); stage.replaceChildren(); drawStage(); } },
      LAYERS.filter((layer) => levels.has(layer)).map((layer) => h('option', { value: layer, selected: layer === value }, t(`layer.${layer}`)))));
    under.replaceChildren(...[switcher,
      mode === 'compare' ? h('span', { class: 'row' },
        pick(t('face.compare.left'), left, (value) => { left = value; }), pick(t('face.compare.right'), right, (value) => { right = value; })) : null,
      mode === 'single' ? h('button', {
        type: 'button', class: 'button', 'aria-pressed': String(showPoints), onclick: () => { showPoints = !showPoints; points(); drawUnder(); },
      }, icon('points'), h('span', {}, t('face.points'))) : null,
      button(t('face.download'), { icon: 'download', kind: 'primary push', onclick: (event) => keep(event.currentTarget) })].filter(Boolean));
  }

  async function keep(control) {
    control.disabled = true;
    try {
      const form = pictureForm();
      form.set('highest', right);
      if (mode !== 'frame') form.delete('paste_back');
      const file = await blob(facePath(id, '/picture.png'), { method: 'POST', body: form, signal: abort.signal });
      const address = URL.createObjectURL(file);
      h('a', { href: address, download: `sfic-${id}.png` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    } catch (error) {
      if (error.name !== 'AbortError') fail(error.code, error.words);
    } finally {
      control.disabled = false;
    }
  }

  // -- what is known

  function drawStep(layer, state) {
    const came = levels.get(layer);
    const index = LAYERS.indexOf(layer);
    const own = face.layer_bytes[index] ?? 0;
    const most = Math.max(...face.layer_bytes, 1);
    const times = came ? t('face.times', {
      fetch: duration(came.fetch_ms), decode: duration(came.decode_ms), synthesis: duration(came.synthesis_ms),
    }) : t(`face.step.${state}`);
    const step = h('li', { class: 'step', dataset: { state, layer } },
      h('button', {
        type: 'button', class: 'step-button', disabled: !came, 'aria-pressed': String(Boolean(came) && right === layer),
        onclick: () => { right = layer; if (mode === 'frame' && !came.frameAddress) mode = 'single'; drawStage(); drawUnder(); for (const each of LAYERS) drawStep(each, levels.has(each) ? 'done' : state); },
      },
      h('span', { class: 'step-mark' }, came ? icon('check') : state === 'waiting' && levels.size === index ? h('span', { class: 'spinner' }) : String(index + 1)),
      h('span', { class: 'step-text' },
        h('span', { class: 'step-line' }, h('strong', {}, t(`layer.${layer}`)), h('span', { class: 'number' }, `+ ${bytes(own)}`)),
        styled(h('span', { class: 'measure' }), { '--part': own / most }),
        came ? h('span', { class: 'step-fact' }, t('face.total', { bytes: bytes(came.layer_bytes), bpp: number((8 * came.layer_bytes) / PIXELS, 5), time: duration(came.arrived) })) : null,
        h('span', { class: 'step-fact faint' }, times))));
    const old = steps.children[index];
    if (old) old.replaceWith(step);
    else steps.append(step);
  }

  function drawSide() {
    const fact = (label, ...value) => [h('dt', {}, label), h('dd', {}, ...value)];
    side.replaceChildren(
      h('section', { class: 'panel-box' }, h('h2', {}, t('face.layers')), steps),
      h('section', { class: 'panel-box' }, h('h2', {}, t('face.analysis')), h('p', { class: 'faint' }, t('face.analysis.from', { bytes: bytes(face.layer_bytes[0] ?? 0) })),
        h('dl', { class: 'estimates' }, described(face).flatMap((each) => [h('dt', {}, each.label), h('dd', { class: each.sure ? '' : 'unsure' },
          h('span', {}, each.words), styled(h('span', { class: 'measure', role: 'img', 'aria-label': t('face.confidence', { value: percent(each.confidence) }), title: t('face.confidence', { value: percent(each.confidence) }) }), { '--part': each.confidence }))]))),
      h('section', { class: 'panel-box' }, h('h2', {}, t('face.facts')), h('dl', { class: 'facts-list' },
        fact(t('fact.camera'), face.camera), fact(t('fact.edge'), face.edge), fact(t('fact.captured'), moment(face.captured)),
        fact(t('fact.frame'), number(face.frame_number)), fact(t('fact.score'), percent(face.score)), fact(t('fact.rate'), number(face.rate)),
        face.brightened > 1 ? fact(t('fact.brightened'), t('fact.brightened.by', { factor: number(face.brightened, 1) })) : null,
        face.frame ? fact(t('fact.size'), `${face.frame[0]} × ${face.frame[1]}`) : null,
        fact(t('fact.bundle'), h('code', {}, face.model_bundle)), fact(t('fact.id'), h('code', {}, face.id)))));
  }

  async function start() {
    try {
      face = await get(facePath(id), { signal: abort.signal });
    } catch (error) {
      if (error.name === 'AbortError') return;
      stage.replaceChildren(h('div', { class: 'empty' }, icon('alert'), h('p', {}, error.words)));
      return;
    }
    title.textContent = t('face.title.of', { camera: face.camera, time: moment(face.captured) });
    for (const layer of LAYERS) drawStep(layer, 'waiting_for_you');
    drawSide();
    askPurpose();
  }
  start();

  return {
    element,
    title: t('face.title'),
    close() {
      abort.abort();
      for (const address of addresses) URL.revokeObjectURL(address);
    },
  };
}
