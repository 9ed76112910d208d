// The dialog that plays a preview and steps through all previews of a run.

import { el } from '../shared/elements.js'
import { described, ofVideo } from '../shared/measured.js'
import { t } from '../shared/messages.js'
import { pathOfRun, video } from '../shared/server.js'

export const titleOf = ({ name, step }) =>
  (name === 'base' ? t('chart.preview_base') : t('chart.preview_step', { step }))

const button = (key, act, sign) =>
  el('button', { type: 'button', title: t(key), 'aria-label': t(key), onclick: act }, sign)

export class PreviewDialog {
  #run = null
  #previews = []
  #index = -1
  #loading = null
  #addresses = new Map() // URLs of videos, by file
  #videos = el('div', { class: 'wt-videos' })
  #title = el('strong', { 'aria-live': 'polite' })
  #slider = el('input', { type: 'range', min: 0, step: 1, 'aria-label': t('chart.preview_slider'),
    oninput: () => this.#select(Number(this.#slider.value)) })
  #element = el('dialog', { class: 'wantune wt-dialog', 'aria-label': t('chart.previews') },
    el('div', { class: 'wt-row' }, this.#title, el('span', { class: 'wt-faint wt-grow' }, t('chart.preview_keys')),
      button('chart.close', () => this.close(), '\u2715')),
    this.#videos,
    el('div', { class: 'wt-row wt-stepper' }, button('chart.preview_previous', () => this.#move(-1), '\u25c0'),
      this.#slider, button('chart.preview_next', () => this.#move(1), '\u25b6')))

  /** Opens the dialog, empty until update(); onclosed() is called when it closes. */
  constructor(onclosed) {
    const element = this.#element
    element.addEventListener('keydown', (event) => this.#onKey(event), { capture: true })
    element.addEventListener('click', (event) => {
      if (event.target === element) this.close()
    })
    element.addEventListener('close', () => {
      this.#forget()
      element.remove()
      onclosed()
    })
    document.body.append(element)
    element.showModal()
    this.#slider.focus()
  }

  close() {
    this.#element.close()
  }

  /** The previews of a run, in their order. */
  update(run, previews) {
    if (this.#run !== run) this.#forget()
    const name = this.#previews[this.#index]?.name
    const isLast = this.#index === this.#previews.length - 1
    this.#run = run
    this.#previews = previews
    this.#slider.max = Math.max(0, previews.length - 1)
    // whoever looks at the newest is shown newer ones; an older one stays
    const same = previews.findIndex((preview) => preview.name === name)
    this.#select(isLast || same < 0 ? previews.length - 1 : same)
  }

  #move(by) {
    this.#select(Math.min(this.#previews.length - 1, Math.max(0, this.#index + by)))
  }

  async #select(index) {
    const preview = this.#previews[index]
    if (!preview) return this.close()
    const isSame = index === this.#index && this.#videos.dataset.name === preview.name
    this.#index = index
    this.#slider.value = index
    this.#slider.setAttribute('aria-valuetext', titleOf(preview))
    this.#title.textContent = titleOf(preview)
    if (isSame) return
    this.#videos.dataset.name = preview.name
    this.#loading?.abort()
    this.#loading = new AbortController()
    const { signal } = this.#loading
    try {
      const addresses = await this.#addressesOf(preview, signal)
      if (!signal.aborted) this.#play(addresses, preview)
    } catch (error) {
      if (!signal.aborted) this.#videos.replaceChildren(el('p', { class: 'wt-error' }, error.message))
    }
  }

  #addressesOf(preview, signal) {
    const known = this.#addresses
    return Promise.all(preview.files.map(async (file) => {
      if (!known.has(file)) known.set(file, await video(pathOfRun(this.#run, 'file'), { name: file }, signal))
      return known.get(file)
    }))
  }

  #play(addresses, preview) {
    const isStill = matchMedia('(prefers-reduced-motion: reduce)').matches
    const present = [...this.#videos.querySelectorAll('video')]
    // the elements stay, so that stepping does not flicker
    if (present.length === addresses.length) present.forEach((player, number) => { player.src = addresses[number] })
    else {
      this.#videos.replaceChildren(...addresses.map((address, number) => {
        const name = t('chart.prompt', { prompt: number + 1 })
        const player = el('video', { src: address, loop: true, controls: true, playsinline: true, autoplay: !isStill,
          'aria-label': name })
        player.muted = true
        return el('figure', {}, player, el('figcaption', { title: t('chart.measured_help') }))
      }))
    }
    this.#videos.querySelectorAll('figcaption').forEach((caption, index) => {
      const name = addresses.length > 1 ? [['chart.prompt', { prompt: index + 1 }]] : []
      caption.textContent = [...name, ...described(ofVideo(preview, index))].map(([key, values]) => t(key, values)).join(' \u00b7 ')
    })
  }

  #onKey(event) {
    // ComfyUI's own keys must not work on the graph behind the dialog
    event.stopPropagation()
    const keys = { ArrowLeft: () => this.#move(-1), ArrowRight: () => this.#move(1), Home: () => this.#select(0),
      End: () => this.#select(this.#previews.length - 1) }
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return
    event.preventDefault()
    keys[event.key]()
  }

  #forget() {
    this.#loading?.abort()
    this.#addresses.forEach(URL.revokeObjectURL)
    this.#addresses.clear()
    this.#videos.dataset.name = ''
  }
}
