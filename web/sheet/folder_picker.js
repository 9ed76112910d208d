// A dialog that lists folders ComfyUI allows, and gives the one that was chosen.

import { el, stylesheet } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { get } from '../shared/server.js'

/** Opens at a folder; resolves with the value for the folder widget, or null if nothing was chosen. */
export function pickFolder(start) {
  stylesheet('shared/style.css')
  stylesheet('sheet/sheet.css')
  const opener = document.activeElement
  return new Promise((resolve) => {
    let shown = null
    const path = el('div', { class: 'wt-path', 'aria-live': 'polite' })
    const list = el('ul', { class: 'wt-folders' })
    const roots = el('div', { class: 'wt-row' })
    const error = el('div', { class: 'wt-error', role: 'alert' })
    const choose = () => dialog.close(shown.path)
    const use = el('button', { type: 'button', class: 'wt-use', onclick: choose }, t('sheet.use_folder'))
    const dialog = el('dialog', { class: 'wantune wt-picker', 'aria-label': t('sheet.choose_folder') },
      el('h3', {}, t('sheet.choose_folder')), roots, path, list, error,
      el('div', { class: 'wt-row wt-end' }, use,
        el('button', { type: 'button', onclick: () => dialog.close('') }, t('sheet.cancel'))))

    const row = (name, value, files) => el('li', {},
      el('button', { type: 'button', class: 'wt-folder', onclick: () => open(value) }, el('span', {}, name),
        files == null ? null : el('span', { class: 'wt-faint' }, t('sheet.num_files', { count: files }))))

    async function open(value, isStart = false) {
      try {
        const answer = await get('folders', { path: value })
        show(answer)
      } catch (failure) {
        if (isStart) return open('')
        error.textContent = failure.message
      }
    }

    function show(answer) {
      shown = answer
      error.textContent = ''
      use.disabled = !answer.path
      path.textContent = answer.title || t('sheet.places')
      path.append(answer.files == null ? '' : ` (${t('sheet.num_files', { count: answer.files })})`)
      roots.replaceChildren(...answer.roots.map(({ name, value }) => el('button', {
        type: 'button', title: value === '.' ? name : value, 'aria-pressed': String(value === answer.path),
        onclick: () => open(value)
      }, name)))
      list.replaceChildren(...(answer.parent == null ? [] : [row(t('sheet.up'), answer.parent, null)]),
        ...answer.folders.map(({ name, value, files }) => row(name, value, files)))
      const remark = (text) => list.append(el('li', { class: 'wt-faint' }, text))
      if (answer.left_out) remark(t('sheet.folders_left_out', { count: answer.left_out }))
      if (answer.path && !answer.folders.length) remark(t('sheet.no_folders'))
      const focused = answer.folders.length ? list.querySelectorAll('button')[answer.parent == null ? 0 : 1] : use
      focused?.focus()
    }

    dialog.addEventListener('keydown', (event) => {
      event.stopPropagation() // else ComfyUI's shortcuts
      const buttons = [...list.querySelectorAll('button')]
      const index = buttons.indexOf(document.activeElement)
      const to = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: buttons.length - 1 }[event.key]
      if (to != null && index >= 0) {
        event.preventDefault()
        buttons[Math.min(buttons.length - 1, Math.max(0, to))].focus()
      } else if (event.key === 'Backspace' && shown?.parent != null) open(shown.parent)
    })
    dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close('') })
    dialog.addEventListener('close', () => {
      dialog.remove()
      opener?.focus?.()
      resolve(dialog.returnValue || null)
    })
    document.body.append(dialog)
    dialog.showModal()
    open(start, true)
  })
}
