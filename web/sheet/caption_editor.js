// A text field for a caption in its tile: saved on leaving or with Ctrl+Enter, Escape restores the old text.

import { el } from '../shared/elements.js'
import { t } from '../shared/messages.js'

/** `save(text, before)` resolves to the text as it was saved; `done()` is called after it, however it ended, and after
 * Escape. */
export function captionEditor(file, save, done) {
  let before = file.text
  let isSaving = false
  const state = el('div', { class: 'wt-state', role: 'status' })
  const field = el('textarea', {
    class: 'wt-edit', spellcheck: 'true', 'aria-label': t('sheet.caption_of', { file: file.file }),
    placeholder: t('sheet.no_caption')
  })
  field.value = before

  const tell = (key, isError = false, text = t(`sheet.${key}`)) => {
    state.textContent = text
    state.title = text
    state.classList.toggle('wt-error', isError)
  }
  const isChanged = () => field.value !== before

  async function commit() {
    if (isSaving || !isChanged()) return
    isSaving = true
    const text = field.value
    tell('saving')
    try {
      const saved = await save(text, before)
      before = saved
      if (field.value === text) field.value = saved
      tell(isChanged() ? 'unsaved' : 'saved')
    } catch (error) {
      tell('', true, error.message)
    } finally {
      isSaving = false
    }
    done()
  }

  field.addEventListener('input', () => tell(isChanged() ? 'unsaved' : 'unchanged'))
  field.addEventListener('blur', commit)
  field.addEventListener('keydown', (event) => {
    event.stopPropagation()
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault()
      commit()
    } else if (event.key === 'Escape') {
      event.preventDefault()
      field.value = before
      tell('unchanged')
      field.closest('.wt-tile')?.focus()
      done()
    }
  })
  if (file.listed_in && !file.text_file) tell('', false, t('sheet.from_list', { list: file.listed_in }))

  return {
    element: el('div', { class: 'wt-editor' }, field, state),
    focus: () => field.focus(),
    isBusy: () => isSaving || isChanged() || field === document.activeElement
  }
}
