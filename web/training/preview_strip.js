// The newest preview of a run as strips of frames; a click opens the dialog that plays all previews of the run.

import { el } from '../shared/elements.js'
import { described, ofVideo } from '../shared/measured.js'
import { t } from '../shared/messages.js'
import { media, pathOfRun } from '../shared/server.js'
import { PreviewDialog, titleOf } from './preview_dialog.js'
import { inOrder, stripOf } from './run_state.js'

/** What was measured of one of its videos. */
function caption(preview, index) {
  const words = described(ofVideo(preview, index)).map(([key, values]) => t(key, values)).join(' \u00b7 ')
  return words ? el('figcaption', { class: 'wt-faint', title: t('chart.measured_help') }, words) : null
}

export class PreviewStrip {
  element = el('div', { class: 'wt-previews' })
  #run = null
  #previews = []
  #shown = '' // key of the preview that is shown or being loaded
  #addresses = []
  #loading = null
  #dialog = null

  /** `previews` as GET /wantune/runs/{run} lists them. */
  async show(run, previews) {
    this.#run = run
    this.#previews = inOrder(previews)
    this.#dialog?.update(run, this.#previews)
    const newest = this.#previews.at(-1)
    const key = newest ? `${run}/${newest.name}/${newest.files.join()}` : ''
    if (key === this.#shown) return
    this.#shown = key
    if (!newest) {
      this.#forget()
      this.element.replaceChildren()
      return
    }
    this.#loading?.abort()
    this.#loading = new AbortController()
    const { signal } = this.#loading
    const load = (file) => media(pathOfRun(run, 'file'), { name: stripOf(file) }, signal).catch(() => null)
    const fresh = await Promise.all(newest.files.map(load))
    if (signal.aborted || this.#shown !== key) return fresh.filter(Boolean).forEach(URL.revokeObjectURL)
    this.#addresses.forEach(URL.revokeObjectURL)
    this.#addresses = fresh.filter(Boolean)
    this.element.replaceChildren(el('div', { class: 'wt-faint' }, titleOf(newest)),
      ...fresh.flatMap((address, index) => (address
        ? [el('figure', {}, this.#button(address, titleOf(newest), index + 1), caption(newest, index))] : [])))
  }

  destroy() {
    this.#forget()
    this.#dialog?.close()
  }

  #button(address, preview, prompt) {
    const name = t('chart.enlarge', { preview, prompt })
    return el('button', { type: 'button', class: 'wt-strip', title: name, 'aria-label': name, onclick: () => this.#open() },
      el('img', { src: address, alt: '', draggable: 'false' }))
  }

  #open() {
    this.#dialog = new PreviewDialog(() => { this.#dialog = null })
    this.#dialog.update(this.#run, this.#previews)
  }

  #forget() {
    this.#loading?.abort()
    this.#addresses.forEach(URL.revokeObjectURL)
    this.#addresses = []
  }
}
