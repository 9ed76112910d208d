// The tile of one item of the contact sheet: its picture as cropped for training, badges, name and caption.

import { el } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { captionEditor } from './caption_editor.js'
import { bucketName, marked } from './items.js'
import { TilePicture } from './tile_picture.js'

/** `trigger` is marked in the caption. `save` and `edited` go to captionEditor, `want` and `missing` to TilePicture. */
export function sheetTile({ file, sample }, { want, trigger, isEditing, save, edited, missing }) {
  const editor = isEditing && file.text != null ? captionEditor(file, save, edited) : null
  const picture = sample && new TilePicture(sample, badges(file, sample), { want, missing })
  const reason = () => el('div', { class: 'wt-error wt-reason', title: file.reason }, file.reason)
  const element = el('div', {
    class: `wt-tile${file.used ? '' : ' wt-left-out'}${file.held_out ? ' wt-held-out' : ''}`,
    role: 'listitem', 'aria-label': spoken(file, sample)
  }, picture ? picture.element : el('div', { class: 'wt-picture' }, reason()),
  el('div', { class: 'wt-name', title: file.file }, file.file), caption(file, trigger, editor))
  picture?.playOver(element)
  return {
    element,
    isBusy: () => editor?.isBusy() ?? false,
    activate(key) {
      if (editor && key === 'Enter') editor.focus()
      else picture?.toggle()
    },
    leave: () => picture?.leave()
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
    file.control && badge(t('sheet.control'), file.control),
    file.held_out && badge(t('sheet.held_out'), t('sheet.held_out_tip'), 'wt-held'))
}

function spoken(file, sample) {
  if (!sample) return t('sheet.spoken_left_out', { file: file.file, reason: file.reason })
  const size = bucketName(sample)
  return [file.file, size, file.held_out && t('sheet.held_out'), file.captions[0]].filter(Boolean).join(', ')
}
