// A dialog for choosing a dataset folder among those the server allows (nodes/page/places.py).

import { el, stylesheet } from '../shared/elements.js'
import { t } from '../shared/messages.js'
import { get } from '../shared/server.js'

/** Opens at a folder; resolves with the value for the folder widget, or null if nothing was chosen. */
export function pickFolder(start) {
  stylesheet('shared/style.css')
  stylesheet('sheet/sheet.css')
  return new Promise((resolve) => new FolderPicker(start, resolve))
}

class FolderPicker {
  #shown = null // the server's answer
  #opener = document.activeElement
  #path = el('div', { class: 'wt-path', 'aria-live': 'polite' })
  #list = el('ul', { class: 'wt-folders' })
  #roots = el('div', { class: 'wt-row' })
  #error = el('div', { class: 'wt-error', role: 'alert' })
  #use = el('button', { type: 'button', class: 'wt-use', onclick: () => this.#dialog.close(this.#shown.path) },
    t('sheet.use_folder'))
  #dialog = el('dialog', { class: 'wantune wt-picker', 'aria-label': t('sheet.choose_folder') },
    el('h3', {}, t('sheet.choose_folder')), this.#roots, this.#path, this.#list, this.#error,
    el('div', { class: 'wt-row wt-end' }, this.#use,
      el('button', { type: 'button', onclick: () => this.#dialog.close('') }, t('sheet.cancel'))))

  constructor(start, onclosed) {
    const dialog = this.#dialog
    dialog.addEventListener('keydown', (event) => this.#onKey(event))
    dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close('') })
    dialog.addEventListener('close', () => {
      dialog.remove()
      this.#opener?.focus?.()
      onclosed(dialog.returnValue || null)
    })
    document.body.append(dialog)
    dialog.showModal()
    this.#open(start, true)
  }

  async #open(value, isStart = false) {
    try {
      const answer = await get('folders', { path: value })
      this.#show(answer)
    } catch (failure) {
      if (isStart) return this.#open('')
      this.#error.textContent = failure.message
    }
  }

  #show(answer) {
    this.#shown = answer
    this.#error.textContent = ''
    this.#use.disabled = !answer.path
    this.#path.textContent = answer.title || t('sheet.places')
    this.#path.append(answer.files == null ? '' : ` (${t('sheet.num_files', { count: answer.files })})`)
    this.#roots.replaceChildren(...answer.roots.map(({ name, value }) => el('button', {
      type: 'button', title: value === '.' ? name : value, 'aria-pressed': String(value === answer.path),
      onclick: () => this.#open(value)
    }, name)))
    const up = answer.parent == null ? [] : [this.#row(t('sheet.up'), answer.parent, null)]
    this.#list.replaceChildren(...up, ...answer.folders.map(({ name, value, files }) => this.#row(name, value, files)))
    const remark = (text) => this.#list.append(el('li', { class: 'wt-faint' }, text))
    if (answer.left_out) remark(t('sheet.folders_left_out', { count: answer.left_out }))
    if (answer.path && !answer.folders.length) remark(t('sheet.no_folders'))
    const focused = answer.folders.length ? this.#list.querySelectorAll('button')[up.length] : this.#use
    focused?.focus()
  }

  #row(name, value, files) {
    return el('li', {},
      el('button', { type: 'button', class: 'wt-folder', onclick: () => this.#open(value) }, el('span', {}, name),
        files == null ? null : el('span', { class: 'wt-faint' }, t('sheet.num_files', { count: files }))))
  }

  #onKey(event) {
    event.stopPropagation() // else ComfyUI's shortcuts would act
    const buttons = [...this.#list.querySelectorAll('button')]
    const index = buttons.indexOf(document.activeElement)
    const to = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: buttons.length - 1 }[event.key]
    if (to != null && index >= 0) {
      event.preventDefault()
      buttons[Math.min(buttons.length - 1, Math.max(0, to))].focus()
    } else if (event.key === 'Backspace' && this.#shown?.parent != null) this.#open(this.#shown.parent)
  }
}
