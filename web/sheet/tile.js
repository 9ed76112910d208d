// One item of the contact sheet: its picture after the crop, badges, name and caption.

import { el } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { captionEditor } from './caption_editor.js'
import { bucketName, marked } from './items.js'

const PASSING = 120 // milliseconds in view before a thumbnail is asked for
const HOVER = 150

const isCalm = () => matchMedia('(prefers-reduced-motion: reduce)').matches

/** `want(id, signal)` gives a promise of an address that is revoked here; `trigger` is marked in the caption. */
export function sheetTile({ file, sample }, { want, trigger, isEditing, save, edited, missing }) {
  const image = el('img', { alt: '', draggable: 'false' })
  const picture = el('div', { class: 'wt-picture' })
  const leaving = new AbortController()
  let playing = null
  let still = ''
  const wait = (milliseconds, react) => {
    const timer = setTimeout(react, milliseconds)
    leaving.signal.addEventListener('abort', () => clearTimeout(timer))
    return timer
  }

  async function load(id, signal) {
    try {
      return await want(id, signal)
    } catch (error) {
      if (error.name === 'AbortError') return ''
      if (error.status === 404) missing()
      picture.replaceChildren(el('div', { class: 'wt-error wt-reason' }, error.message))
      return ''
    }
  }

  async function showStill() {
    const url = await load(sample.thumbnail, leaving.signal)
    if (leaving.signal.aborted) URL.revokeObjectURL(url)
    else if (url) {
      still = url
      if (!playing?.url) image.src = url
    }
  }

  async function play() {
    if (playing || !sample?.moving) return
    const mine = (playing = { stopping: new AbortController(), url: '' })
    const url = await load(sample.moving, mine.stopping.signal)
    if (playing !== mine) URL.revokeObjectURL(url)
    else if (url) {
      mine.url = url
      image.src = url
    }
  }

  function stop() {
    if (!playing) return
    playing.stopping.abort()
    if (playing.url) {
      if (still) image.src = still
      else image.removeAttribute('src')
      URL.revokeObjectURL(playing.url)
    }
    playing = null
  }

  const editor = isEditing && file.text != null ? captionEditor(file, save, edited) : null
  const element = el('div', {
    class: `wt-tile${file.used ? '' : ' wt-left-out'}${file.held_out ? ' wt-held-out' : ''}`,
    role: 'listitem', 'aria-label': spoken(file, sample)
  }, picture, el('div', { class: 'wt-name', title: file.file }, file.file), caption(file, trigger, editor))

  if (sample) {
    picture.append(image, badges(file, sample))
    wait(PASSING, showStill)
  } else picture.append(el('div', { class: 'wt-error wt-reason', title: file.reason }, file.reason))
  if (sample?.moving) {
    let timer
    const soon = () => {
      clearTimeout(timer)
      if (!isCalm()) timer = wait(HOVER, play)
    }
    const over = () => {
      clearTimeout(timer)
      if (!element.matches(':hover') && document.activeElement !== element) stop()
    }
    element.addEventListener('pointerenter', soon)
    element.addEventListener('focus', soon)
    element.addEventListener('pointerleave', over)
    element.addEventListener('blur', over)
    picture.addEventListener('click', () => (playing ? stop() : play()))
  }

  return {
    element,
    isBusy: () => editor?.isBusy() ?? false,
    activate(key) {
      if (editor && key === 'Enter') editor.focus()
      else if (playing) stop()
      else play()
    },
    leave() {
      stop()
      leaving.abort()
      if (still) URL.revokeObjectURL(still)
    }
  }
}

function caption(file, trigger, editor) {
  if (editor) return editor.element
  const all = file.captions ?? (file.text ? [file.text] : [])
  const more = all.length > 1 &&
    el('span', { class: 'wt-faint' }, ` ${t('sheet.more_captions', { count: all.length - 1 })}`)
  const parts = all[0] ? marked(all[0], trigger).map(({ text, isTrigger }) => (isTrigger ? el('mark', {}, text) : text))
    : [el('span', { class: 'wt-faint' }, file.used ? t('sheet.no_caption') : '')]
  return el('div', { class: 'wt-caption', title: all.join('\n') }, ...parts, more)
}

function badges(file, sample) {
  const badge = (text, title, kind = '') => el('span', { class: `wt-badge ${kind}`, title }, text)
  const [first, last] = sample.frames_used[0]
  const windows = sample.frames_used.length
  return el('div', { class: 'wt-badges' },
    badge(`${sample.width}x${sample.height}`, t('sheet.bucket_tip')),
    sample.frames > 1 && badge(t('sheet.frames', { frames: sample.frames }),
      t('sheet.frames_tip', { first, last, fps: 16 })),
    windows > 1 && badge(t('sheet.windows', { count: windows }), t('sheet.windows_tip')),
    badge(`x${sample.repeats}`, t('sheet.repeats_tip')),
    file.mask && badge(t('sheet.mask'), file.mask),
    file.held_out && badge(t('sheet.held_out'), t('sheet.held_out_tip'), 'wt-held'))
}

function spoken(file, sample) {
  if (!sample) return t('sheet.spoken_left_out', { file: file.file, reason: file.reason })
  const size = bucketName(sample)
  return [file.file, size, file.held_out && t('sheet.held_out'), file.captions[0]].filter(Boolean).join(', ')
}
