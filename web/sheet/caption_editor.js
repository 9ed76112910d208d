// A text field for a caption in its tile: saved on leaving or with Ctrl+Enter, Escape restores the old text.

import { el } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { savingOf } from './caption_saving.js'

/** `save(text, before)` resolves to the text as it was saved; `done()` is called after it, however it ended, and after
 * Escape. */
export function captionEditor(file, save, done) {
  const state = el('div', { class: 'wt-state', role: 'status' })
  const field = el('textarea', {
    class: 'wt-edit', spellcheck: 'true', 'aria-label': t('sheet.caption_of', { file: file.file }),
    placeholder: t('sheet.no_caption')
  })
  field.value = file.text

  const write = (text, isError = false) => {
    state.textContent = text
    state.title = text
    state.classList.toggle('wt-error', isError)
  }
  const tell = (name, error) => (name === 'failed' ? write(error.message, true) : write(t(`sheet.${name}`)))
  const saving = savingOf(field, file.text, { save, tell, done })

  field.addEventListener('input', () => tell(saving.isChanged() ? 'unsaved' : 'unchanged'))
  field.addEventListener('blur', saving.commit)
  field.addEventListener('keydown', (event) => {
    event.stopPropagation()
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault()
      saving.commit()
    } else if (event.key === 'Escape') {
      event.preventDefault()
      saving.undo()
      field.closest('.wt-tile')?.focus()
    }
  })
  if (file.listed_in && !file.text_file) write(t('sheet.from_list', { list: file.listed_in }))

  return {
    element: el('div', { class: 'wt-editor' }, field, state),
    focus: () => field.focus(),
    isBusy: () => saving.isBusy() || field === document.activeElement
  }
}
